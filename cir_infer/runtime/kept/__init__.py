"""What was computed of a graph once and is kept on the disk, so that the next process finds it."""
