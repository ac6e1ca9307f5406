"""Local steps in a run: steps without requests, and rows that become several."""
