"""`python -m tests.fuzzing.run --inputs N`: feed hostile inputs to everything that reads foreign files.

    python -m tests.fuzzing.run --inputs 200000 --report tests/fuzzing/RESULTS.md     all targets, each its
    share python -m tests.fuzzing.run images --inputs 1000 --seed 3                         one of them, as
    JSON python -m tests.fuzzing.run images --only 77                                      one input, with a
    traceback

Inputs run in child processes, thousands in each, under limits for every one of them: `SECONDS` of processor
time and `MEMORY` bytes above what the process took before the first. A child that dies or hangs in native
code names the input that did it, and the run goes on behind it. Equal seeds give equal inputs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cir_infer.errors import CirError
from tests.fuzzing.shares import SHARES

SECONDS = 2
"""Processor time of an input: others may use the machine."""

MEMORY = 512 << 20
PATIENCE = 120
"""Seconds of the clock after which a child that says nothing is taken to hang."""

MAX_FINDINGS = 20
WARM_UP = 10


class Hang(BaseException):
    """An input took too long."""


def work(target: str, start: int, count: int, seed: int, loud: bool = False) -> None:
    """In a child: feed inputs; a line for each finding, and from time to time the number of the current
    input."""
    from tests.fuzzing.targets import TARGETS, digest

    def too_long(*_: Any) -> None:
        raise Hang

    # Native code prints what it likes on stdout; what is said to the parent goes another way.
    voice = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**words: Any) -> None:
        print(json.dumps(words), file=voice)

    signal.signal(signal.SIGPROF, too_long)
    logging.disable()
    warnings.simplefilter("ignore")  # Pillow warns of what it then refuses
    outcomes: Counter[str] = Counter()
    most, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        subject = TARGETS[target](Path(folder))
        for number in range(WARM_UP):
            _fed(subject, random.Random(digest(f"{target} warm {number}")))
        idle = _resident("VmRSS")
        resource.setrlimit(
            resource.RLIMIT_AS, (_address_space() + 4 * MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1])
        )
        for number in range(start, start + count):
            say(at=number)
            rng = random.Random(digest(f"{target} {seed} {number}"))
            _forget_peak()
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                outcome = subject.feed(rng)
                outcomes["accepted" if outcome is None else outcome] += 1
            except CirError as error:
                outcomes[type(error).__name__] += 1
                if len(str(error)) > 4000:
                    say(finding=f"{number}: a message of {len(str(error))} characters")
            except Hang:
                say(finding=f"{number}: took more than {SECONDS} s")
            except BaseException as error:
                where = "".join(traceback.format_exception(error)[-6:])
                say(finding=f"{number}: {type(error).__name__}: {where[-3000:]}")
                if loud:
                    traceback.print_exc()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            took, grown = time.process_time() - began, _resident("VmHWM") - idle
            most, slowest = max(most, grown), max(slowest, took)
            if grown > MEMORY:
                say(finding=f"{number}: took {grown >> 20} MiB above idle")
                break  # what it left behind would be counted against the next
        say(outcomes=outcomes, idle=idle, grown=most, slowest=slowest)


def _fed(subject: Any, rng: random.Random) -> None:
    try:
        subject.feed(rng)
    except CirError:
        pass
    except Exception:  # it is found again where it counts
        pass


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _resident(field: str) -> int:
    text = Path("/proc/self/status").read_bytes()
    at = text.index(field.encode()) + len(field) + 1
    return int(text[at : text.index(b"kB", at)]) << 10


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_bytes(b"5")


def fuzz(target: str, count: int, seed: int, start: int = 0) -> dict[str, Any]:
    """Feed `count` inputs to a target; what came out."""
    started = time.perf_counter()
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    idle, grown, slowest, at = 0, 0, 0.0, start
    while at < start + count and len(findings) < MAX_FINDINGS:
        command = [sys.executable, "-m", "tests.fuzzing.run", target, "--child", str(at)]
        command += ["--inputs", str(start + count - at), "--seed", str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            for said in _lines(child):
                at = said.get("at", at)
                findings += [f"{target} {said['finding']}"] if "finding" in said else []
                outcomes.update(said.get("outcomes", {}))
                idle, grown = max(idle, said.get("idle", 0)), max(grown, said.get("grown", 0))
                slowest = max(slowest, said.get("slowest", 0.0))
                if len(findings) >= MAX_FINDINGS:
                    child.kill()
        if child.returncode:
            findings.append(f"{target} {at}: the process ended with {child.returncode}")
        at += 1
    return {
        "target": target,
        "inputs": at - start,
        "outcomes": dict(outcomes),
        "findings": findings,
        "idle_mib": idle >> 20,
        "grown_mib": max(grown, 0) >> 20,
        "slowest_seconds": round(slowest, 2),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _lines(child: subprocess.Popen[bytes]) -> Any:
    """What a child says; it is ended where it says nothing for long."""
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(PATIENCE):
                child.kill()
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from map(json.loads, whole)


def fuzz_all(inputs: int, seed: int, jobs: int) -> list[dict[str, Any]]:
    """Every target with its share of the inputs, several at a time; the longest first."""
    total = sum(SHARES.values())
    counts = {target: max(20, round(inputs * share / total)) for target, share in SHARES.items()}
    with ThreadPoolExecutor(jobs) as pool:
        running = {target: pool.submit(fuzz, target, count, seed) for target, count in counts.items()}
        reports = []
        for target, future in running.items():
            reports.append(future.result())
            print(json.dumps(reports[-1]), file=sys.stderr, flush=True)
            assert reports[-1]["target"] == target
    return reports


def written(reports: list[dict[str, Any]], seed: int) -> str:
    """The result as a page."""
    inputs, findings = sum(r["inputs"] for r in reports), [f for r in reports for f in r["findings"]]
    rows = [
        "| target | inputs | accepted | refused | MiB above idle | slowest, s |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        accepted = report["outcomes"].get("accepted", 0)
        refused = sum(report["outcomes"].values()) - accepted
        rows.append(
            f"| {report['target']} | {report['inputs']:,} | {accepted:,} | {refused:,} | "
            f"{report['grown_mib']} | {report['slowest_seconds']} |"
        )
    return "\n".join(
        [
            "# Hostile inputs",
            "",
            f"{inputs:,} inputs, seed {seed}, Python {platform.python_version()}: each under {SECONDS} s of "
            f"processor time and {MEMORY >> 20} MiB",
            "above an idle process, and nothing but an answer or a `CirError` may come out. Findings: "
            f"{len(findings)}.",
            "",
            *rows,
            "",
            f"Made by `python -m tests.fuzzing.run --inputs {inputs} --seed {seed} --report "
            "tests/fuzzing/RESULTS.md`.",
            "",
            *(f"    {line}" for finding in findings for line in finding.splitlines()),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=sorted(SHARES))
    parser.add_argument("--inputs", "--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--only", type=int)
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child is not None:
        work(options.target, options.child, options.inputs, options.seed)
    elif options.only is not None:
        work(options.target, options.only, 1, options.seed, loud=True)
    elif options.target is not None:
        json.dump(fuzz(options.target, options.inputs, options.seed), sys.stdout, indent=1)
    else:
        reports = fuzz_all(options.inputs, options.seed, options.jobs)
        page = written(reports, options.seed)
        if options.report is not None:
            options.report.write_text(page.rstrip() + "\n", encoding="utf-8")
        print(page)
        raise SystemExit(any(report["findings"] for report in reports))


if __name__ == "__main__":
    main()
