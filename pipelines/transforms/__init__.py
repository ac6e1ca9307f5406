"""Steps without requests: what they make of rows."""
