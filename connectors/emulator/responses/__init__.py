"""Emulated responses, in the official dialect and the reference's."""
