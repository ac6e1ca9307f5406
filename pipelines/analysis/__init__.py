"""Results in notebooks: tables, charts, comparison, scores, similarity."""
