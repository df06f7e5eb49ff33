"""A grid of runs over any keys and seeds: its cells, its folder, the processes they run in, the results."""
