"""What all sinks share: table schemas, Parquet parts, compaction, media uploads."""
