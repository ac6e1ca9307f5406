"""Experiments: variants of a job compared on the same sample of its rows."""
