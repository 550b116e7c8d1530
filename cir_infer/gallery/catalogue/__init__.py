"""The catalogue: its tables, what proves them, and how a commit changes them."""
