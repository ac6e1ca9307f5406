"""Job files and workspaces: models, YAML positions, overrides, SQL predicates, the job graph."""
