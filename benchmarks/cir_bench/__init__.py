"""Benchmarks, data sets and evaluation protocols."""
