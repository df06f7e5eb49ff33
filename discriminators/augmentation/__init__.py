"""Adaptive discriminator augmentation (Training GANs with Limited Data)."""
