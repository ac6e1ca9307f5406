"""Runs on a Ray cluster (extra `ray`)."""
