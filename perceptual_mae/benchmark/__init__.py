"""Cost of a training step: time, FLOPs, memory, and where they go."""
