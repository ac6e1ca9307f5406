"""Upkeep of a workspace: pruning and exporting the ledger."""
