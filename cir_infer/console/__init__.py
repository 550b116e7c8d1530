"""The commands, and what they print: tables and progress."""
