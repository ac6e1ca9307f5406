"""Prompt templates and nested values that contain them."""
