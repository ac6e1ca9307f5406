"""Files and objects: reading input, part stores for Parquet tables, uploads of media files."""
