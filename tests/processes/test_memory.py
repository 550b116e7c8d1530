"""Memory that pictures take one after the other."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from cir_infer.processes.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "kept":
    keep_freed_memory()

def picture():
    blocks = [libc.malloc(900_000) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 900_000)
    for block in reversed(blocks):
        libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(4):
    picture()
before = faults()
for _ in range(10):
    picture()
print((faults() - before) // 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory in other ways")
def test_what_a_picture_took_is_there_for_the_next() -> None:
    taken = {}
    for how in ("left", "kept"):
        command = [sys.executable, "-c", PROGRAM, how]
        taken[how] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken["kept"] < 10
    assert taken["left"] > 300, "the C library keeps it by itself: keep_freed_memory can go"
