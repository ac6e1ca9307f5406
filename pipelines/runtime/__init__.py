"""Locks, run records, the event loop, child processes, scratch folders."""
