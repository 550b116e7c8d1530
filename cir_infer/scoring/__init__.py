"""Scorers: exact top-k of QueryTerms over gallery rows."""
