"""A gallery's folder and its files: how they are opened, written, locked, put in place and cleared away."""
