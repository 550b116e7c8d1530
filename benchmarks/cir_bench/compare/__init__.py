"""Ours against what one would use otherwise, interleaved in one run."""
