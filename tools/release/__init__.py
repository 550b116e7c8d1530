"""Wheels and sources: built, compared with the tree, installed and asked, and all that a release needs."""
