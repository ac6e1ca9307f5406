"""Files that a job file includes: prompts and output schemas."""
