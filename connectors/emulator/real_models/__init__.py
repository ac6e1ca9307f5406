"""Small real models that run offline (extra `local`)."""
