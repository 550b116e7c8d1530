"""What a query costs over shards: measured here, and simulated for more than is here."""
