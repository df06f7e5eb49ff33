"""Optimisers as the papers set them: AdamW for the generator and for fine-tuning, Adam for the discriminator."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Adam, AdamW

SPARED = ("cls_token", "mask_token", "pos_embed", "relative_position_bias_table")
"""Last parts of names that do not decay, whatever their shape (MAE, BEiT)."""


def generator_optimizer(generator: nn.Module, *, betas: Sequence[float], weight_decay: float) -> AdamW:
    """Return AdamW without decay on biases, norms, tokens and positions (MAE); each step sets the learning rate."""
    named = [(name, parameter) for name, parameter in generator.named_parameters() if parameter.requires_grad]
    spared = {name for name, parameter in named if parameter.ndim <= 1 or name.rpartition(".")[2] in SPARED}
    groups = [
        {"params": [parameter for name, parameter in named if name not in spared], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name in spared], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)


def discriminator_optimizer(discriminator: nn.Module, *, betas: Sequence[float]) -> Adam:
    """Return Adam without decay; the learning rate is set by each step."""
    return Adam(discriminator.parameters(), lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)


def finetuning_optimizer(
    classifier: nn.Module, *, betas: Sequence[float], weight_decay: float, layer_decay: float
) -> AdamW:
    """Return AdamW whose rate shrinks by `layer_decay` a layer from the head down (BEiT, MAE); none decays as above.

    timm makes the groups by the classifier's `group_matcher`. It writes `lr_scale` into them, which no optimiser of
    torch's reads: the rates are right only where `set_learning_rate` sets them.
    """
    from timm.optim import param_groups_layer_decay

    spared = [name for name, _ in classifier.named_parameters() if name.rpartition(".")[2] in SPARED]
    groups = param_groups_layer_decay(
        classifier, weight_decay=weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay
    )
    return AdamW(groups, lr=0.0, betas=(float(betas[0]), float(betas[1])), fused=True)
