"""Exact scorers on the CPU, timed in one run against the read roofline and against what else one could do."""
