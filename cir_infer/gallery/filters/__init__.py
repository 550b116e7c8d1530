"""Filters: from an expression to a mask of rows."""
