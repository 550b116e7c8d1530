"""What depends on processes and threads: children, forks, interpreter exit, usable processors."""
