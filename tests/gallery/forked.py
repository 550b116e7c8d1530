"""Children of this process and processes beside it that use a gallery."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(work: Callable[[], object]) -> tuple[int, int]:
    """Run in a forked child; its number, and a pipe that ends when it has."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    return child, read


def ended(child: tuple[int, int]) -> int:
    os.read(child[1], 1)
    os.close(child[1])
    return os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1])


def in_child(work: Callable[[], object]) -> int:
    return ended(forked(work))


def elsewhere(path: Path, code: str) -> str:
    """What another process prints that has opened the gallery as g."""
    program = (
        "import sys; import numpy as np; from cir_infer.gallery import Gallery\n"
        f"with Gallery.open(sys.argv[1], wait=120) as g:\n    {code}\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
