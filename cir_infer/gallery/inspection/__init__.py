"""What is asked about a gallery's contents: its fields, its duplicates, whether all of it fits together."""
