"""Galleries to and from elsewhere: backups, and the layouts of others."""
