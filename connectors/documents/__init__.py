"""Documents that rows name: one module for each format, read in worker processes with bounded memory and time."""
