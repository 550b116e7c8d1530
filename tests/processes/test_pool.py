"""Jobs done by several children."""

from pathlib import Path

import pytest

from cir_infer.errors import DeviceError
from cir_infer.processes.pool import ChildPool
from tests.processes.forking import Child

MODULE = """
import os, sys
from cir_infer.errors import UsageError
from cir_infer.processes.pool import serve

def work(job):
    print("this must not come between")
    if job == "wrong":
        raise UsageError("a wrong job")
    if job == "die":
        os._exit(9)
    if job == "disk":
        raise OSError(28, "No space left on device")
    return [job, os.getpid()]

if __name__ == "__main__":
    serve(work)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "worker_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "worker_of_test"


@pytest.mark.parametrize("count", [1, 3])
def test_answers_come_in_the_order_of_the_jobs(module: str, count: int) -> None:
    with ChildPool(module, count) as pool:
        answers = list(pool.map(range(40)))
    assert [job for job, _ in answers] == list(range(40))
    assert 1 <= len({child for _, child in answers}) <= count


@pytest.mark.parametrize(
    ("job", "said"), [("wrong", "a wrong job"), ("disk", "No space left"), ("die", "code 9")]
)
def test_a_failure_is_told(module: str, job: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said), ChildPool(module, 1) as pool:
        list(pool.map(["fine", job]))


def test_a_forked_child_keeps_no_child_from_its_end(module: str) -> None:
    """It has copies of the pipes, on whose end the others wait, and lives longer."""
    with ChildPool(module, 2) as pool:
        assert len(list(pool.map(range(9)))) == 9
        forked = Child()
        running = list(pool._running)
    assert [child.returncode for child in running] == [0] * len(running)
    forked.let_go()


def test_a_module_that_does_not_exist_is_told() -> None:
    with pytest.raises(DeviceError, match="no_such_module"), ChildPool("no_such_module", 1) as pool:
        list(pool.map([1]))
