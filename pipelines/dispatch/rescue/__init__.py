"""Rescue: failed rows are requested again in another way."""
