"""One API key's limits: token bucket, concurrency, adaptive rate, circuit breaker, shares among processes."""
