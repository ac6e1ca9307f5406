"""Everything outside the process: APIs, files, databases and the embedded provider."""
