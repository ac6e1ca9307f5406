"""The embedded provider: an offline emulation of the whole API, also `rowmill serve`."""
