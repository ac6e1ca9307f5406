"""Destinations of results, one module each."""
