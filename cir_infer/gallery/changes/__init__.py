"""What changes a gallery, commit by commit: additions and removals, compaction, another bundle."""
