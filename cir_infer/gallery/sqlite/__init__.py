"""SQLite's files: their connections, their locks and what a fork leaves of both."""
