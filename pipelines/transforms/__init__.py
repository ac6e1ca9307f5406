"""Transforms: steps without requests, as functions from Arrow tables to Arrow tables, and what they are made of."""
