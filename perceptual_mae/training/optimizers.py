"""Optimisers as the papers set them: AdamW for the generator and for fine-tuning, Adam for the discriminator."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Adam, AdamW

from perceptual_mae.generator.encoder import NO_WEIGHT_DECAY


def generator_optimizer(generator: nn.Module, *, betas: Sequence[float], weight_decay: float) -> AdamW:
    """Return AdamW without decay on biases, norms, tokens and positions (MAE); each step sets the learning rate."""
    named = [(name, parameter) for name, parameter in generator.named_parameters() if parameter.requires_grad]
    spared = {name for name, parameter in named if parameter.ndim <= 1 or name.rpartition(".")[2] in NO_WEIGHT_DECAY}
    groups = [
        {"params": [parameter for name, parameter in named if name not in spared], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name in spared], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)


def discriminator_optimizer(discriminator: nn.Module, *, betas: Sequence[float]) -> Adam:
    """Return Adam without decay; the learning rate is set by each step."""
    return Adam(discriminator.parameters(), lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)
