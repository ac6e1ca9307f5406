"""Parts that sinks share: table schemas and their checks, Parquet parts, compaction, the folder of the tables."""
