"""The small bundle that checks of an installation ask is the one that tests make."""

from __future__ import annotations

from pathlib import Path

from cir_infer.bundle import Bundle
from tests.bundles import write_tiny_bundle

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny.cir"


def test_the_committed_bundle_is_what_the_builder_makes(tmp_path: Path) -> None:
    made = Bundle(write_tiny_bundle(tmp_path / "tiny.cir"))
    assert Bundle(GOLDEN).manifest.fingerprint == made.manifest.fingerprint
