"""The commands of `rowmill`, one file each."""
