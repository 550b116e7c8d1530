"""`python -m tests.fuzzing.run --inputs N`: feed hostile inputs to everything that reads foreign files.

    python -m tests.fuzzing.run --inputs 200000 --report tests/fuzzing/RESULTS.md    all targets, shared out
    python -m tests.fuzzing.run images --inputs 1000 --seed 3    one of them, as JSON
    python -m tests.fuzzing.run images --only 77    an input, with a traceback

`--state FILE` keeps what came out so far; a run that was stopped goes on from there. Inputs run in child
processes, thousands in each, under limits for every one of them: `SECONDS` of processor time
and `MEMORY` bytes above what the process took before the first. A child that dies or hangs in native code
names the input that did it, and the run goes on behind it. Equal seeds give equal inputs.
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
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
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


Report = dict[str, Any]
"""What came out of a target."""

Note = Callable[[Report], None]


class Hang(BaseException):
    """An input took too long."""


def work(target: str, start: int, count: int, seed: int, loud: bool = False) -> None:
    """In a child: feed inputs; a line for each that begins, that is over, and that is a finding."""
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
    most, slowest = 0, 0.0
    # In memory, where the system has a place for that: waiting for a disk finds nothing.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        subject = TARGETS[target](Path(folder))
        for number in range(WARM_UP):
            _fed(subject, random.Random(digest(f"{target} warm {number}")))
        idle = _resident("VmRSS")
        resource.setrlimit(
            resource.RLIMIT_AS, (_address_space() + 4 * MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1])
        )
        say(idle=idle)
        for number in range(start, start + count):
            say(at=number)
            was = None
            rng = random.Random(digest(f"{target} {seed} {number}"))
            _forget_peak()
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                was = subject.feed(rng) or "accepted"
            except CirError as error:
                was = type(error).__name__
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
            more = {"grown": grown} if grown > most else {}
            say(was=was, **more, **({"slowest": took} if took > slowest else {}))
            most, slowest = max(most, grown), max(slowest, took)
            if grown > MEMORY:
                say(finding=f"{number}: took {grown >> 20} MiB above idle")
                break  # what it left behind would be counted against the next


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


def fuzz(
    target: str, count: int, seed: int, before: Report | None = None, note: Note | None = None
) -> Report:
    """Feed `count` inputs to a target; what came out.

    Args:
        target: its name.
        count: how many.
        seed: what makes them.
        before: what came out of the first ones, of a run that was stopped.
        note: is told every few seconds what has come out so far.
    """
    report = before or {
        "target": target,
        "inputs": 0,
        "outcomes": {},
        "findings": [],
        "idle_mib": 0,
        "grown_mib": 0,
        "slowest_seconds": 0.0,
        "seconds": 0.0,
    }
    outcomes: Counter[str] = Counter(report["outcomes"])
    findings: list[str] = report["findings"]
    began = noted = time.perf_counter() - report["seconds"]

    def so_far(inputs: int) -> Report:
        report.update(inputs=inputs, outcomes=dict(outcomes), seconds=round(time.perf_counter() - began, 1))
        return report

    at = report["inputs"]
    while at < count and len(findings) < MAX_FINDINGS:
        command = [sys.executable, "-m", "tests.fuzzing.run", target, "--child", str(at)]
        command += ["--inputs", str(count - at), "--seed", str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            for said in _lines(child):
                at = said.get("at", at)
                findings += [f"{target} {said['finding']}"] if "finding" in said else []
                outcomes.update([said["was"]] if said.get("was") else [])
                report["idle_mib"] = max(report["idle_mib"], said.get("idle", 0) >> 20)
                report["grown_mib"] = max(report["grown_mib"], said.get("grown", 0) >> 20)
                report["slowest_seconds"] = max(report["slowest_seconds"], round(said.get("slowest", 0.0), 2))
                if len(findings) >= MAX_FINDINGS:
                    child.kill()
                if note is not None and "was" in said and time.perf_counter() > noted + 5:
                    noted = time.perf_counter()
                    note(so_far(at + 1))
        if child.returncode:
            findings.append(f"{target} {at}: the process ended with {child.returncode}")
        at += 1
    return so_far(at)


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


class State:
    """What has come out so far, in a file; without one, nothing is kept."""

    def __init__(self, path: Path | None, inputs: int, seed: int) -> None:
        self._path = path
        self._said: dict[str, Any] = {"inputs": inputs, "seed": seed, "targets": {}}
        self._turn = threading.Lock()
        if path is not None and path.exists():
            said = json.loads(path.read_text("utf-8"))
            if (said["inputs"], said["seed"]) != (inputs, seed):
                raise SystemExit(f"{path}: is of a run with --inputs {said['inputs']} --seed {said['seed']}")
            self._said = said

    def of(self, target: str) -> Report | None:
        """What came out of a target so far."""
        report: Report | None = self._said["targets"].get(target)
        return report

    def note(self, report: Report) -> None:
        """Keep what has come out of a target."""
        with self._turn:
            self._said["targets"][report["target"]] = dict(report)
            if self._path is not None:
                draft = self._path.with_name(f"{self._path.name}.next")
                draft.write_text(json.dumps(self._said, indent=1), encoding="utf-8")
                draft.replace(self._path)


def fuzz_all(inputs: int, seed: int, jobs: int, state: State) -> list[Report]:
    """Every target with its share of the inputs, several at a time; the longest first."""
    total = sum(SHARES.values())
    counts = {target: max(20, round(inputs * share / total)) for target, share in SHARES.items()}
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            target: pool.submit(fuzz, target, count, seed, state.of(target), state.note)
            for target, count in counts.items()
        }
        reports = []
        for target, future in running.items():
            reports.append(future.result())
            state.note(reports[-1])
            print(json.dumps(reports[-1]), file=sys.stderr, flush=True)
            assert reports[-1]["target"] == target
    return reports


def written(reports: list[Report], seed: int) -> str:
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
    parser.add_argument("--state", type=Path)
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
        state = State(options.state, options.inputs, options.seed)
        reports = fuzz_all(options.inputs, options.seed, options.jobs, state)
        page = written(reports, options.seed)
        if options.report is not None:
            options.report.write_text(page.rstrip() + "\n", encoding="utf-8")
        print(page)
        raise SystemExit(any(report["findings"] for report in reports))


if __name__ == "__main__":
    main()
