"""Rows in files: from vectors to tensors, and the memory-mapped segments of a commit."""
