"""What a query and a gallery are made from: images, their preprocessing, and texts."""
