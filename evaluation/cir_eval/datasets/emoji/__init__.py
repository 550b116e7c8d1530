"""A data set that people drew: emoji in several styles."""
