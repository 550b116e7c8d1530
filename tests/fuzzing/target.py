"""What every target of the fuzzer is."""

from __future__ import annotations

import random
from pathlib import Path


class Target:
    """Makes the n-th hostile input and feeds it; anything but a `CirError` that comes out is a finding."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def feed(self, rng: random.Random) -> str | None:
        """Feed one input: None where it was accepted, or the name of an answer that is as good as an
        error."""
        raise NotImplementedError
