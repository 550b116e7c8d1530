"""Image and text encoders that the systems share."""
