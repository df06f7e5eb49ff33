"""`python -m perceptual_mae.cli`, for launchers that start modules (torchrun --nproc_per_node 2 -m ...)."""

from perceptual_mae.cli import main

raise SystemExit(main())
