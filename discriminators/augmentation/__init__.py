"""Augmentation of what the discriminator is shown, one kind a file; those of ADA have several."""
