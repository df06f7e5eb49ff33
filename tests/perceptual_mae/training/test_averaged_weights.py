"""The average of a generator's weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from perceptual_mae.training.averaged_weights import AveragedWeights


def test_it_follows_the_weights_as_pytorchs_own_average_does():
    torch.manual_seed(0)
    live = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    ours = AveragedWeights(live, 0.9)
    theirs = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)
    for _ in range(4):
        with torch.no_grad():
            for parameter in live.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update_parameters(live)
        theirs.update_parameters(live)
    assert int(ours.n_averaged) == int(theirs.n_averaged) == 4
    for one, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_three_updates_worked_by_hand():
    live = nn.Linear(1, 1, bias=False)
    average = AveragedWeights(live, 0.75)
    for value, expected in ((8.0, 8.0), (4.0, 7.0), (3.0, 6.0)):
        with torch.no_grad():
            live.weight.fill_(value)
        average.update_parameters(live)
        assert average.module.weight.item() == expected
