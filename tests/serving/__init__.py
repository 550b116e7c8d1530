"""`cir-serve`: the service over real HTTP, its page in a real browser."""
