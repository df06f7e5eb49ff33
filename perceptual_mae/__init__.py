"""Masked autoencoders trained with perceptual and adversarial losses."""
