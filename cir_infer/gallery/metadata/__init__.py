"""Metadata: which values are accepted, and how they are stored and compared."""
