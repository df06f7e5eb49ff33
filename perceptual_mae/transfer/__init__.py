"""Dense transfer: an encoder and a head of its own trained on boxes, masks or classes of pixels (paper Table 3)."""
