"""Emulated embeddings."""
