"""Two gloo processes of test_non_finite.py: one of them has a pixel that is not a number; both skip the step."""

import torch

from conftest import debug_trainer, random_batches
from perceptual_mae.schedules import TrainingProgress
from test_non_finite import spoil

if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = debug_trainer("ls_gan_p")
    rank = trainer.accelerator.process_index
    for step in range(3):
        own = [random_batches(8, 2, seed=step)[rank]]
        before = [each.detach().clone() for each in trainer.trained_parameters]
        trainer.step(spoil(own) if (step, rank) == (1, 1) else own, TrainingProgress(1, step, step / 16))
        is_skipped = all(torch.equal(*pair) for pair in zip(before, trainer.trained_parameters, strict=True))
        assert is_skipped == (step == 1)
        assert bool(trainer.skipped) == (step == 1)
    checksum = torch.stack([each.detach().double().sum() for each in trainer.trained_parameters]).sum().reshape(1)
    everywhere = trainer.accelerator.gather(checksum)
    assert everywhere[0] == everywhere[1]
    torch.distributed.barrier()  # neither leaves while the other still listens
    del trainer
    torch.distributed.destroy_process_group()
