"""The exponential moving average of a generator's weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class AveragedWeights(AveragedModel):
    """A copy of a network that follows its parameters: average = decay * average + (1 - decay) * live.

    The first update copies them. Buffers stay as they are: a generator's are constants. Unlike PyTorch's own update,
    this one never has the host wait for a GPU.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=False)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Let the averages follow the parameters of the network as they are now."""
        averages, live = tuple(self.module.parameters()), tuple(model.parameters())
        if self.n_averaged == 0:  # the count is on the CPU
            torch._foreach_copy_(averages, live)
        else:
            torch._foreach_lerp_(averages, live, 1 - self.decay)
        self.n_averaged += 1
