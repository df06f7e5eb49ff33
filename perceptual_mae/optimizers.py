"""Optimisers as the papers set them: AdamW for the generator, Adam for the discriminator."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Adam, AdamW

TOKENS = ("cls_token", "mask_token")


def generator_optimizer(generator: nn.Module, *, betas: Sequence[float], weight_decay: float) -> AdamW:
    """Return AdamW without decay on biases, norms and tokens (MAE); the learning rate is set by each step."""
    named = [(name, parameter) for name, parameter in generator.named_parameters() if parameter.requires_grad]
    spared = {name for name, parameter in named if parameter.ndim <= 1 or name.rpartition(".")[2] in TOKENS}
    groups = [
        {"params": [parameter for name, parameter in named if name not in spared], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name in spared], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)


def discriminator_optimizer(discriminator: nn.Module, *, betas: Sequence[float]) -> Adam:
    """Return Adam without decay; the learning rate is set by each step."""
    return Adam(discriminator.parameters(), lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)
