"""From a job to something that can run: source, schema, rows to request."""
