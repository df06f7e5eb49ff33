"""Fine-tuning a classifier on a run's encoder."""
