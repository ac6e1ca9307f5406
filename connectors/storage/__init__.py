"""Local files and object stores: reading, atomic changes of several files."""
