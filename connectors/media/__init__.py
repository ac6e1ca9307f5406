"""Files that rows name: reading, fetching, splitting audio, multipart uploads."""
