"""How a run ends that somebody ends: with what was encoded, and with the code that says why."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cir_infer.gallery import Gallery
from tests.bundles import write_tiny_bundle
from tests.indexing.support import folder_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


@pytest.mark.parametrize(("number", "code", "told"), [
    (signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")
])  # fmt: skip
def test_a_watch_that_is_asked_to_end_ends(tmp_path: Path, number: int, code: int, told: str) -> None:
    bundle, folder = write_tiny_bundle(tmp_path / "b.cir"), folder_of(tmp_path / "f", 6)
    program = "import sys; from cir_infer.commands.index import main; sys.exit(main())"
    place = tmp_path / "g"
    command = [sys.executable, "-c", program, str(bundle), str(folder), "--gallery", str(place)]
    with subprocess.Popen(
        [*command, "--watch", "0.1", "--workers", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and "6 items" in process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code and error.strip().endswith(told)
    with Gallery.open(place, wait=0) as gallery:
        gallery.remove(["0.png"])  # nobody holds the lock
        assert len(gallery) == 5 and gallery.verify().ok
