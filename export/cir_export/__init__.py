"""Host side: models, checkpoints, training and export. Needs torch."""
