"""`rowmill plan`: rows, requests, tokens, cost and time of a run before anything is sent."""
