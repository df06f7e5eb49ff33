"""What a training step costs: time, FLOPs, memory, and where they go."""
