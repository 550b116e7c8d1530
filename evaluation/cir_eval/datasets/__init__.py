"""Data sets of composed image retrieval: readers, and one that is generated."""
