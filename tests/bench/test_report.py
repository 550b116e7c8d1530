"""Plots, regressions and the README's section: what they say about results of known content."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_bench.accuracy.failures import failures_page
from cir_bench.commands import main
from cir_bench.report.page import report_page
from cir_bench.report.regressions import group_key, regressions
from cir_bench.report.svg import Bar, Line, bars, lines, nice_ticks
from cir_bench.report.tables import (
    BEGIN,
    END,
    GPU_BEGIN,
    GPU_END,
    gpu_section,
    performance_section,
    replace_section,
)
from cir_bench.report.text import significant
from cir_bench.results import gpu_checks, read_result, read_results
from cir_infer.errors import UsageError
from tests.serving.browser import browser

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))

SCORING = {
    "machine": {"name": "A machine", "cpu": {"cores": 2}},
    "commit": "aaaaaaa",
    "created": "2026-01-01T00:00:00+00:00",
    "rows": 1000,
    "dim": 512,
    "queries": 1,
    "k": 50,
    "results": [
        {"name": "cir/cpu", "dtype": "float16", "verified": True, "median_ms": 1.0, "p10_ms": 0.9,
         "p90_ms": 1.2, "of_roofline": 1.05, "extra_bytes": 0},
        {"name": "literal PyTorch", "dtype": "float32", "verified": True, "median_ms": 40.0, "p10_ms": 38.0,
         "p90_ms": 44.0, "of_roofline": 36.0, "extra_bytes": 9},
    ],
}  # fmt: skip

ACCURACY = {
    "kind": "accuracy",
    "machine": {"name": "A machine"},
    "commit": "aaaaaaa",
    "created": "2026-01-01T00:00:00+00:00",
    "bundle": {"system": "artemis", "precision": "float32"},
    "protocol": {"name": "scenes/shaded", "source": "<generated>", "split": "test"},
    "settings": {"row_type": "float32", "authors_batch": None},
    "parts": [{"name": "all", "rows": 5000, "queries": 1000, "metrics": {"R@1": 75.8}}],
    "mean": {"R@1": 75.8},
    "pooled": {"R@1": 75.8},
    "measure": {"metrics": ["R@1"], "value": 75.8},
    "doubts": ["a <doubt>"],
}


def scoring(**changes) -> dict:
    result = copy.deepcopy({**SCORING, "kind": "scoring"})
    result["results"][0].update({k: v for k, v in changes.items() if k.endswith("_ms")})
    result.update({k: v for k, v in changes.items() if not k.endswith("_ms")})
    return result


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (123.456, "123"), (12345.6, "12,300")]
)
def test_numbers_are_printed_with_three_digits(value, text):
    assert significant(value) == text


@settings(max_examples=100)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_ascending_and_cover_the_values(low, span):
    ticks = nice_ticks(low, low + span)
    assert ticks == sorted(set(ticks))
    slack = 1e-8 * (abs(low) + span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 9


def plots(markup: str) -> list[ElementTree.Element]:
    """The same plot, for a broad page and for a phone."""
    broad, narrow = ElementTree.fromstring(markup).iter("svg")
    return [broad, narrow]


def test_plots_are_well_formed_and_keep_their_proportions():
    for plot in plots(bars([Bar("a & b", 10, "10", 5, 20), Bar("<c>", 5, "5")], "ms")):
        long, short = (float(rect.get("width")) for rect in plot.iter("rect"))
        assert long == pytest.approx(2 * short, rel=1e-2)
        assert "a & b" in [text.text for text in plot.iter("text")]
    for line in plots(lines([Line("x", [(0, 1), (1, 10), (2, 100)])], "x", "y", logarithmic=True)):
        heights = [float(dot.get("cy")) for dot in line.iter("circle")]
        assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2), (
            "equal steps in decades"
        )


def test_what_became_slower_is_named_and_noise_is_not():
    old, noisy = scoring(), scoring(commit="bbbbbbb", created="2026-01-02", median_ms=1.15, p10_ms=0.95)
    slow = scoring(commit="ccccccc", created="2026-01-03", median_ms=1.3, p10_ms=1.25)
    assert regressions([old, noisy]) == []
    (change,) = regressions([slow, old])
    assert (change.before, change.after, change.commits) == (1.0, 1.3, ("aaaaaaa", "ccccccc"))
    assert "cir/cpu float16" in str(change)
    assert group_key(old) != group_key(scoring(tokens=32))
    elsewhere = scoring(commit="ccccccc", machine={"name": "Another"}, median_ms=9.0, p10_ms=9.0)
    assert regressions([old, elsewhere]) == [], "another machine is not comparable"


def test_committed_results_of_different_models_are_not_compared():
    of_one_commit = [path for path in RESULTS if path.name.startswith("compare-")]
    results = list(read_results(of_one_commit).values())
    of = {
        (result["machine"]["name"], result["bundle"]["system"], *result["bundle"]["image"])
        for result in results
    }
    assert len(of) == len({group_key(result) for result in results}) > 1
    assert not [key for key in map(group_key, read_results(RESULTS).values()) if "  " in key]


def test_lost_recall_is_a_regression_of_half_a_point():
    worse, same = copy.deepcopy(ACCURACY), copy.deepcopy(ACCURACY)
    worse.update(mean={"R@1": 75.1}, created="2026-01-02", commit="bbbbbbb")
    same.update(mean={"R@1": 75.5}, created="2026-01-02", commit="bbbbbbb")
    assert len(regressions([ACCURACY, worse])) == 1
    assert regressions([ACCURACY, same]) == []
    padded = copy.deepcopy(worse)
    padded["settings"]["authors_batch"] = 32  # another figure of the same weights
    assert regressions([ACCURACY, padded]) == []


def test_what_tells_bars_apart_is_not_cut_off():
    names = [f"Some(R) Long(R) Processor Name a1b2c3d 1000 x 750 to 224 px{end}" for end in ("", ", scaled")]
    for plot, middle in zip(
        plots(bars([Bar(name, 3, "3 ms") for name in names], "ms")), (12, -14), strict=True
    ):
        labels = [text for text in plot.iter("text") if text.get("class") == "label"]
        lines_of = {}
        for text in labels:
            bar = min(
                plot.iter("rect"),
                key=lambda rect: abs(float(rect.get("y")) + middle - float(text.get("y"))),
            )
            lines_of.setdefault(bar.get("y"), []).append(text.text)
        assert [" ".join(lines) for lines in lines_of.values()] == names
    for endless in plots(bars([Bar("x" * 500, 3, "3 ms")], "ms")):
        assert sum(text.get("class") == "label" for text in endless.iter("text")) <= 3


def test_results_of_one_title_are_told_apart():
    others = [
        scoring(),
        scoring(machine={"name": "Another", "cpu": {"cores": 2}}),
        scoring(created="2026-01-02T00:00:00+00:00"),
        scoring(created="2026-01-02T01:00:00+00:00", commit="bbbbbbbbb"),
    ]
    page = report_page([*others, ACCURACY])
    links = re.findall(r"<a href='#result-\d+'>(.*?)</a>", page)
    assert len(links) == len(set(links)) == 5
    assert links[-1] == "Accuracy: artemis float32, float32 rows, scenes/shaded"  # alone as it is
    assert any(link.endswith("; Another") for link in links)


def test_the_page_holds_results_warnings_and_regressions_escaped():
    slow = scoring(commit="ccccccc", created="2026-01-03", median_ms=1.3, p10_ms=1.25)
    page = report_page([scoring(), slow, ACCURACY], "A & B")
    assert "<title>A &amp; B</title>" in page
    assert "Regressions" in page
    assert "a &lt;doubt&gt;" in page
    assert "&lt;generated&gt;" in page
    assert page.count("<section id=") == 3
    assert not re.search(r"(src|href)=['\"](?!#|data:)", page)


def test_the_readme_section_is_replaced_between_its_markers():
    section = performance_section({"s.json": scoring(), "a.json": ACCURACY})
    text = replace_section(f"# A\n\n{BEGIN}\nold\n{END}\nafter\n", section)
    assert text.startswith(f"# A\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert (
        "| A machine, 2 cores | 1,000 x 512 | 1 | cir/cpu, float16 | 1.00 | 1.05x reading "
        "| literal PyTorch 40.0x |" in text
    )
    assert "| 1,000 x 32 x 512 |" in performance_section({"s.json": scoring(tokens=32)})
    assert "R@1 75.80" in text
    assert "1 of 2 carry warnings" in text


@pytest.mark.parametrize("text", ["no markers", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_markers_is_refused(text: str):
    with pytest.raises(UsageError, match="performance:begin"):
        replace_section(text, "x")


def test_a_readme_that_is_not_there_is_refused(tmp_path: Path, capsys):
    result = tmp_path / "s.json"
    result.write_text(json.dumps(SCORING))
    assert main(["report", str(result), "--tables", str(tmp_path / "none.md")]) == 2
    assert "none.md cannot be read" in capsys.readouterr().err


def test_check_tells_a_stale_section(tmp_path: Path, capsys):
    result, readme = tmp_path / "s.json", tmp_path / "README.md"
    result.write_text(json.dumps(SCORING))
    readme.write_text(f"{BEGIN}\nold\n{END}\n")
    command = ["report", str(result), "--tables", str(readme)]
    assert main([*command, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert main(command) == 0
    assert main([*command, "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("README.md\n")[-1])["tables_are_current"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        ("[1]", "no JSON object"),
        ('{"kind": "x"}', "no result"),
        ('{"kind": "latency"}', "lacks"),
        ('{"kind": "latency", "machine": {}, "commit": "x"}', "lacks .*stages"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_result(path)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None},
        {"results": [{"name": "ours"}]},
        {"results": 7},
        {"machine": {"gpus": [1e308]}},
        {"results": [{**SCORING["results"][0], "median_ms": 10**400}]},
    ],
    ids=["none", "missing", "number", "machine", "long"],
)
@pytest.mark.parametrize("kind", ["scoring", "gpu-check"])
def test_a_result_that_is_odd_deep_inside_is_named(tmp_path: Path, capsys, change: dict, kind: str):
    odd = {**scoring(), **change}
    if kind == "gpu-check":
        odd = {"kind": kind, "machine": odd["machine"], "commit": "x", "benchmark": {"cases": [odd]}}
    (tmp_path / "sound.json").write_text(json.dumps(scoring()))
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    assert main(["report", str(tmp_path / "sound.json"), str(tmp_path / "odd.json")]) == 2
    said = capsys.readouterr().err
    assert "odd.json" in said and "does not hold what a result of kind" in said and len(said) < 500


def test_a_reason_of_the_system_is_said_without_its_number(tmp_path: Path):
    for path, reason in ((tmp_path / "no.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError) as caught:
            read_result(path)
        assert f"({reason})" in str(caught.value) and "Errno" not in str(caught.value)


def test_a_gpu_check_counts_as_its_scoring_cases(tmp_path: Path):
    path = tmp_path / "gpu.json"
    case = {name: SCORING[name] for name in ("rows", "dim", "queries", "k")}
    entries = [*SCORING["results"], {"name": "cuVS", "dtype": "float16", "skipped": "not installed"}]
    head = {"kind": "gpu-check", "machine": {"name": "A GPU"}, "commit": "c", "created": "2026-01-01"}
    path.write_text(json.dumps({**head, "benchmark": {"cases": [{**case, "results": entries}]}}))
    (found,) = read_results([path]).values()
    assert (found["kind"], found["machine"]["name"], len(found["results"])) == ("scoring", "A GPU", 2)
    assert "A GPU" in report_page([found])


def test_a_size_that_was_measured_twice_is_one_case_with_all_its_entries(tmp_path: Path):
    path = tmp_path / "gpu.json"
    case = {name: SCORING[name] for name in ("rows", "dim", "queries", "k")}
    entries = [{**SCORING["results"][0], "name": name} for name in ("cir/cuda", "torch/literal")]
    head = {"kind": "gpu-check", "machine": {"name": "A GPU"}, "commit": "c", "created": "2026-01-01"}
    cases = [{**case, "results": entries[:1]}, {**case, "results": entries}]
    path.write_text(json.dumps({**head, "benchmark": {"cases": cases}}))
    (found,) = read_results([path]).values()
    assert [entry["name"] for entry in found["results"]] == ["cir/cuda", "torch/literal"]


def test_the_committed_page_says_what_the_committed_results_say():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    text = replace_section(page, performance_section(read_results(RESULTS)))
    text = replace_section(text, gpu_section(gpu_checks(RESULTS)), GPU_BEGIN, GPU_END)
    assert text == page, "run: cir-bench report benchmarks/results/*.json --tables docs/performance.md"


def test_the_gpu_section_is_open_until_a_gpu_was_there():
    section = gpu_section({})
    assert section.count("| open |") == 11 and "make gpu-check" in section


def test_the_gpu_section_says_what_gpus_reached(tmp_path: Path):
    def check(over_roofline: float, **steps: object) -> dict:
        entry = {"name": "cir/cuda", "dtype": "float16", "median_ms": 1.0, "of_roofline": over_roofline}
        case = {"rows": 1_000_000, "dim": 512, "queries": 1, "k": 50, "results": [entry]}
        head = {"kind": "gpu-check", "machine": {"name": "A GPU", "gpus": [{}]}, "commit": "abc"}
        named = {
            "steps": {
                name: said if isinstance(said, dict) else {"passed": said} for name, said in steps.items()
            }
        }
        named = named if steps else {}
        return {**head, "created": "2026-01-02T03:04:05", **named, "benchmark": {"cases": [case]}}

    paths = [tmp_path / name for name in ("good.json", "slow.json", "sweep.json", "s.json")]
    paths[0].write_text(json.dumps(check(1.0, conformance=True, memcheck=True, racecheck=False)))
    long = {"passed": False, "exit_code": 124, "seconds": 45.0}
    paths[1].write_text(json.dumps(check(2.0, conformance=False, memcheck=long)))
    paths[2].write_text(json.dumps(check(1.0)))  # a sweep alone has checked nothing
    paths[3].write_text(json.dumps(SCORING))
    section = gpu_section(gpu_checks(paths))
    assert "| CUDA scorer | wanted | A GPU, 2026-01-02 | A GPU, 2026-01-02 |" in section
    assert "| conformance suite | passes | passes | **fails** |" in section
    assert "| compute-sanitizer memcheck | passes | passes | did not end in 45 s |" in section
    assert "| compute-sanitizer racecheck | passes | **fails** | not run |" in section
    assert "share of the read bandwidth | at least 0.9 | 1.00 | 0.500 (missed) |" in section
    assert "From `good.json` (abc), `slow.json` (abc)." in section
    assert {result["kind"] for result in read_results(paths).values()} == {"scoring"}


@pytest.mark.parametrize("write", [report_page, failures_page])
def test_a_page_is_dark_where_the_reader_wants_it_dark(write):
    """That of failures was white at night."""
    with browser() as chromium:
        lightness = {}
        for scheme in ("light", "dark"):
            page = chromium.new_context(color_scheme=scheme).new_page()
            page.set_content(write([], "Measured"))
            for name, of in (("ground", "backgroundColor"), ("ink", "color")):
                rgb = page.evaluate(f"getComputedStyle(document.body).{of}.match(/[0-9]+/g).map(Number)")
                lightness[scheme, name] = sum(rgb[:3])
        assert lightness["light", "ground"] > 2 * lightness["light", "ink"]
        assert lightness["dark", "ink"] > 2 * lightness["dark", "ground"]


LOOKED_AT = """() => [...document.querySelectorAll('svg')].filter((plot) => plot.getClientRects().length).map(
    (plot) => {
        const box = plot.getBoundingClientRect(), around = plot.closest('section').getBoundingClientRect();
        const texts = [...plot.querySelectorAll('text')], scale = box.width / plot.viewBox.baseVal.width;
        const boxes = texts.map((text) => text.getBoundingClientRect());
        const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
        return {
            beyond: box.right - around.right,
            type: Math.min(...texts.map((text) => parseFloat(getComputedStyle(text).fontSize) * scale)),
            cut: texts.filter((text, at) => boxes[at].left < box.left - 1 || boxes[at].right > box.right + 1)
                .map((text) => text.textContent),
            covered: texts.filter((text, at) => boxes.slice(at + 1).some((other) => over(boxes[at], other)))
                .map((text) => text.textContent),
        };
    })"""


@pytest.mark.parametrize("width", [320, 360, 600, 790, 830, 1200])
def test_plots_fit_the_page_and_can_be_read(width: int):
    """On a phone those of bars were 720 pixels wide."""
    with browser() as chromium:
        page = chromium.new_context(viewport={"width": width, "height": 740}).new_page()
        page.set_content(report_page(list(read_results(RESULTS).values())))
        looked_at = page.evaluate(LOOKED_AT)
        assert len(looked_at) > 10
        for plot in looked_at:
            assert plot["beyond"] < 0 and plot["type"] >= 9, plot
            assert plot["cut"] == [] and plot["covered"] == [], plot


def test_a_phone_scrolls_tables_and_not_the_page():
    with browser() as chromium:
        page = chromium.new_context(viewport={"width": 360, "height": 740}).new_page()
        page.set_content(
            report_page([read_result(path) for path in RESULTS if path.name.startswith("latency")])
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        # What a table says beyond the edge made its rows three lines high.
        rows = page.evaluate(
            "[...document.querySelectorAll('tr')].map(row => row.getBoundingClientRect().height)"
        )
        assert max(rows) < 1.5 * min(rows)
