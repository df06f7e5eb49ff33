"""Pictures: image grids, attention maps, the layer map."""
