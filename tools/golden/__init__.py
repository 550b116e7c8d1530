"""The small random models of tests/golden, made of their authors' packages, with those packages' answers."""
