"""Structured answers: the schema of a typed output, how it is requested, and how the answer is found and read."""
