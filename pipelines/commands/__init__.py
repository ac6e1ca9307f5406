"""The commands of `rowmill`, one file each, in a folder for each purpose."""
