"""Columns of sources: their types, guessed or converted, and the values that files and folders give them."""
