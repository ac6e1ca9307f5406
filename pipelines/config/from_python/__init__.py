"""Jobs in Python: their model, what is passed to a run, and their YAML."""
