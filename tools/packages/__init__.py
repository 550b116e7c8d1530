"""Packages of others: which are needed, one taken from the index, or carried where there is no network."""
