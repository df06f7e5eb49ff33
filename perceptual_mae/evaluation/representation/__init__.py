"""Representation scores: linear probes, kNN, the KTH heads."""
