"""The host-side commands."""
