"""What a result says about where it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cir_bench.machine import commit_of


def test_a_commit_is_dirty_by_its_sources_not_by_its_results(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    results, package = tmp_path / "benchmarks" / "results", tmp_path / "package"
    results.mkdir(parents=True)
    package.mkdir()
    (results / "a.json").write_text("1")
    (package / "code.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit_of(package)
    assert len(clean) == 12
    (results / "a.json").write_text("2")
    assert commit_of(package) == clean
    (package / "code.py").write_text("2")
    assert commit_of(package) == f"{clean}-dirty"
