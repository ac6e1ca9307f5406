"""HTTP: requests, server-sent events, error replies, rate-limit headers, token usage."""
