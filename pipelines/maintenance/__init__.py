"""Ledger maintenance: pruning and export."""
