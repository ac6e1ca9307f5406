"""The SQLite ledger: every exchange and answer, and their projection into tables."""
