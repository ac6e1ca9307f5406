"""The parameters of API requests and their checks."""
