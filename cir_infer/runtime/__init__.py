"""Backends that run the graphs of a bundle."""
