"""Sources of rows, one module each."""
