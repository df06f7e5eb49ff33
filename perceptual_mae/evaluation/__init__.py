"""Scores of reconstructions and representations."""
