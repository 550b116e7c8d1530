"""What the CUDA scorer is meant to reach, held against what a GPU check measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["TARGETS", "Target", "reached"]

Benchmark = Mapping[str, Any]


class Target(NamedTuple):
    """A figure to reach.

    Attributes:
        what: what is compared, in words.
        least: the ratio must be at least this, or None.
        most: it must be at most this, or None.
        unit: after the number.
        figure: reads it from a benchmark of `sweep`; None where that has not been measured.
    """

    what: str
    least: float | None
    most: float | None
    unit: str
    figure: Callable[[Benchmark], float | None]

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return (
            f"at least {self.least:g}{self.unit}"
            if self.least is not None
            else f"at most {self.most:g}{self.unit}"
        )

    def met(self, figure: float) -> bool:
        """Whether a figure is good enough."""
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)


def reached(benchmark: Benchmark) -> list[tuple[Target, float | None]]:
    """Every target with its figure, or None where it was not measured."""
    return [(target, target.figure(benchmark)) for target in TARGETS]


def _timed(case: Mapping[str, Any], name: str, dtype: str) -> Mapping[str, Any]:
    for entry in case["results"]:
        if (entry["name"], entry["dtype"]) == (name, dtype) and "median_ms" in entry:
            return dict(entry)
    return {}


def _cases(benchmark: Benchmark, rows: int, queries: int) -> Iterator[Mapping[str, Any]]:
    """A size may have been measured several times, each time beside others."""
    for case in benchmark.get("cases", []):
        if (case["rows"], case["queries"]) == (rows, queries):
            yield case


def _entry(benchmark: Benchmark, rows: int, queries: int, name: str, dtype: str) -> Mapping[str, Any]:
    found = (_timed(case, name, dtype) for case in _cases(benchmark, rows, queries))
    return next(filter(None, found), {})


def _over(rows: int, queries: int, name: str, dtype: str) -> Callable[[Benchmark], float | None]:
    """How many times ours another entry takes."""

    def figure(benchmark: Benchmark) -> float | None:
        for case in _cases(benchmark, rows, queries):  # both in turn, in one of them
            ours = _timed(case, "cir/cuda", "float16").get("median_ms")
            other = _timed(case, name, dtype).get("median_ms")
            if ours and other:
                return float(other / ours)
        return None

    return figure


def _bandwidth(benchmark: Benchmark) -> float | None:
    over = _entry(benchmark, _MILLION, 1, "cir/cuda", "float16").get("of_roofline")
    return 1 / over if over else None


def _int8(benchmark: Benchmark) -> float | None:
    over = _over(_MILLION, 1, "cir/cuda-exact-from-int8", "float16")(benchmark)
    return 1 / over if over else None


def _gemm(benchmark: Benchmark) -> float | None:
    for rows in (_MILLION, 100_000):
        found = _entry(benchmark, rows, 1024, "cir/cuda", "float16").get("of_gemm_rate")
        if found:
            return float(found)
    return None


def _gemv(benchmark: Benchmark) -> float | None:
    over = _over(_MILLION, 1, "torch/gemv-topk", "float16")(benchmark)
    return 1 / over if over else None


def _call(benchmark: Benchmark) -> float | None:
    call = benchmark.get("call")
    return call["median_ms"] * 1e3 if call and call["rows"] == 15_000 else None


_MILLION = 1_000_000
TARGETS = (
    Target("one query, 1M x 512 float16: share of the read bandwidth", 0.9, None, "", _bandwidth),
    Target("one query, 1M: exact from int8 over float16", 1.7, None, "x", _int8),
    Target("1,024 queries: useful operations over the float16 GEMM rate", 0.6, None, "", _gemm),
    Target(
        "one query, 1M: PyTorch's literal loop over ours",
        30,
        None,
        "x",
        _over(_MILLION, 1, "torch/literal", "float32"),
    ),
    Target(
        "64 queries, 1M: two GEMMs and top-k over ours",
        3,
        None,
        "x",
        _over(_MILLION, 64, "torch/two-gemms-topk", "float16"),
    ),
    Target(
        "1,024 queries, 100k: two GEMMs and top-k over ours",
        3,
        None,
        "x",
        _over(100_000, 1024, "torch/two-gemms-topk", "float16"),
    ),
    Target("one query, 1M: ours over one GEMV and top-k", None, 1.0, "x", _gemv),
    Target("one query, 15k rows: the whole call from Python", None, 40, " µs", _call),
)
