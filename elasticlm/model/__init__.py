"""Elastic models: what levels are, the encoder that runs them, files, teachers."""

POOLINGS = ("mean", "cls")
"""How hidden states may become a vector."""
