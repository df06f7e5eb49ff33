"""A grid of runs over any keys and seeds: its cells, its folder, the processes they run in, what came out."""
