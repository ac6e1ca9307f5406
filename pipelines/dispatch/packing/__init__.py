"""Packing: rows of a chat or responses step that share a request."""
