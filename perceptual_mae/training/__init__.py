"""Pre-training: the step, the loop around it, its state and its monitoring."""
