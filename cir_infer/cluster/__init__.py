"""Shards on a Ray cluster: encoding in bulk, serving, changing over. Needs the extra `[ray]`."""
