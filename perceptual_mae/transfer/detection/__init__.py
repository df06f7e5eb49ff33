"""Object detection and instance segmentation: Mask R-CNN on an encoder."""
