"""Requests sent through the provider's Batch API."""
