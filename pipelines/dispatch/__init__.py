"""Requests in, outcomes out: provider routes, rate limits, retries, the step runner."""
