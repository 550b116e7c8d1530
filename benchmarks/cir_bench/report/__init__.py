"""Results as text, as a page with plots, and as the README's table."""
