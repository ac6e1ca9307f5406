"""Providers of a workspace: their entries, addresses, keys, proxies and certificates."""
