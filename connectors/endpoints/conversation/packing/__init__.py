"""Packing: several rows of a step in one conversation."""
