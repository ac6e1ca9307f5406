"""Commands that make and maintain workspaces."""
