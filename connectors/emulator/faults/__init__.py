"""Faults on demand: error replies, altered answers, and when each is injected."""
