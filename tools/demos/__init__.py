"""The demonstrations, with the commands that a user would type."""
