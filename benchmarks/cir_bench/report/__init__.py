"""Results as text, as a page with plots, and as tables."""
