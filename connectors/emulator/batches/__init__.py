"""Emulated files and batches."""
