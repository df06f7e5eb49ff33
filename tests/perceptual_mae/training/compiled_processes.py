"""One of two processes that train compiled networks together; the first writes their weights to a file."""

import sys
from functools import partial
from unittest import mock

import torch

from conftest import debug_trainer, random_batches
from test_compilation import progress_of, state_of

if __name__ == "__main__":
    torch.set_num_threads(1)
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        trainer = debug_trainer("ls_gan_p", "training.compile=all", dtype=torch.float64)
    rank = trainer.accelerator.process_index
    for step in range(3):
        trainer.step([random_batches(4, 2, seed=step)[rank]], progress_of(1 + step))
    if rank == 0:
        torch.save(state_of(trainer), sys.argv[1])
    torch.distributed.destroy_process_group()
