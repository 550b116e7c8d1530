"""What a developer runs; nothing here is installed. Every program starts by its path, from any folder."""
