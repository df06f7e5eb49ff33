"""Semantic segmentation: UperNet on the maps of an encoder."""
