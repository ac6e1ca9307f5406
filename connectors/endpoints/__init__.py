"""Endpoints of the API, one module each: rows to requests, replies to typed values."""
