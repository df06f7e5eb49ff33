"""Reconstruction scores of held-out images."""
