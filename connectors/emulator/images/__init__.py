"""Emulated image generation, edit and variation."""
