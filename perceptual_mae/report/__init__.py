"""Comparison of runs: what their folders hold, whether they compare, tables and figures."""
