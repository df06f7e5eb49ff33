"""Files of other networks' weights: registry, download, loading."""
