"""`python -m tests.fuzzing.run TARGET --count N`: feed hostile inputs, one JSON object with what was found.

The inputs run in a child process with a limit on its memory and one on the time for each input. A
child that dies names the input that did it, and the run goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from cir_infer.errors import CirError

SECONDS = 30
MEMORY = 3 << 30
MAX_FINDINGS = 20


class Hang(BaseException):
    """An input took too long."""


def work(target: str, start: int, count: int, seed: int) -> None:
    """In a child: feed inputs; a line for each finding, the number of the current input in a file."""
    from tests.fuzzing.targets import TARGETS, digest

    def too_long(*_: Any) -> None:
        raise Hang

    # Native code prints what it likes on stdout; what is said to the parent goes another way.
    voice = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**words: Any) -> None:
        print(json.dumps(words), file=voice)

    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")  # Pillow warns of what it then refuses
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        subject = TARGETS[target](Path(folder))
        soft = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, soft))
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(start, start + count):
            say(at=number)
            rng = random.Random(digest(f"{target} {seed} {number}"))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                subject.feed(rng)
                outcomes["accepted"] += 1
            except CirError as error:
                outcomes[type(error).__name__] += 1
            except Hang:
                say(finding=f"{number}: took more than {SECONDS} s")
            except BaseException as error:
                where = traceback.format_exception(error)[-6:]
                say(finding=f"{number}: {type(error).__name__}: {''.join(where)}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        say(outcomes=outcomes, base=base, peak=peak)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fuzz(target: str, count: int, seed: int) -> dict[str, Any]:
    """Feed `count` inputs to a target; what came out."""
    started = time.perf_counter()
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    base = peak = at = 0
    while at < count and len(findings) < MAX_FINDINGS:
        command = [
            sys.executable,
            "-m",
            "tests.fuzzing.run",
            target,
            "--child",
            str(at),
            "--count",
            str(count - at),
        ]
        with subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                said = json.loads(line)
                at = said.get("at", at)
                findings += [said["finding"]] if "finding" in said else []
                outcomes.update(said.get("outcomes", {}))
                base, peak = max(base, said.get("base", 0)), max(peak, said.get("peak", 0))
                if len(findings) >= MAX_FINDINGS:
                    child.kill()
        if child.returncode:
            findings.append(f"{at}: the process died with {child.returncode}")
        at += 1
    return {
        "target": target,
        "inputs": at,
        "outcomes": dict(outcomes),
        "findings": findings,
        "memory_mib": [base >> 10, peak >> 10],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child is not None:
        work(options.target, options.child, options.count, options.seed)
    else:
        json.dump(fuzz(options.target, options.count, options.seed), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
