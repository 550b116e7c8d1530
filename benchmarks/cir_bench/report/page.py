"""Results as one self-contained HTML page: no script, no font, no picture from anywhere else."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cir_bench.report import sections
from cir_bench.report.regressions import regressions
from cir_bench.report.text import machine_line

__all__ = ["COLOURS", "report_page"]

COLOURS = """
:root{color-scheme:light dark}
:root{--ink:#1b2230;--soft:#5d6878;--line:#dfe4ea;--card:#fff;--ground:#f5f6f8;--ours:#0f8f6b;
--other:#8593a6;--reference:#c9a227;--a:#0f8f6b;--b:#3567d6;--c:#c2571a;--warn:#8a5a00;--warnbg:#fff6df;
--bad:#a4262c;--badbg:#fdecec}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf1;--soft:#9aa6b6;--line:#2d3542;--card:#1a202a;
--ground:#12161d;--ours:#35c79b;--other:#6d7b8f;--reference:#d9b548;--a:#35c79b;--b:#7ea2ff;--c:#f0945b;
--warn:#f1cd7f;--warnbg:#33290f;--bad:#ff9a9f;--badbg:#3a191b}}
"""
"""Of every page that a measurement writes, by day and by night."""

_STYLE = (
    COLOURS
    + """
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--ground);
margin:0 auto;max-width:1120px;padding:2.2rem 1.2rem 4rem}
h1{font-size:1.65rem;margin:0;letter-spacing:-.01em}h2{font-size:1.2rem;margin:0 0 .15rem}
h3{font-size:.95rem;margin:1.6rem 0 .5rem}
p.lead,p.sub{color:var(--soft);margin:.1rem 0 1rem}p.sub{font-size:.88rem}
nav{margin:1rem 0 1.6rem;display:flex;flex-wrap:wrap;gap:.35rem .5rem}
nav a{color:inherit;text-decoration:none;border:1px solid var(--line);background:var(--card);
border-radius:999px;padding:.15rem .75rem;font-size:.85rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.3rem 1.4rem;
margin:0 0 1.3rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:.7rem;margin:1rem 0 .4rem}
.tile{border:1px solid var(--line);border-radius:9px;padding:.6rem .8rem}
.tile b{display:block;font-size:1.35rem;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.8rem}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:0 1.5rem}
.pairs>div{min-width:0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;width:100%}
th{font-weight:600;color:var(--soft);text-align:left;white-space:nowrap}
th,td{padding:.32rem 1.1rem .32rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}tr.ours td{color:var(--ours);font-weight:600}
ul.doubts,ul.worse{margin:1rem 0 0;padding:.6rem .9rem .6rem 1.9rem;border-radius:9px;font-size:.88rem}
ul.doubts{background:var(--warnbg);color:var(--warn)}ul.worse{background:var(--badbg);color:var(--bad)}
svg{max-width:100%;height:auto;display:block;margin:.2rem 0;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .tick,svg .axis{fill:var(--soft)}svg .label{font-size:12px}
svg .value{font-size:12px;font-weight:600;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line);stroke-width:1}
svg .whisker{stroke:var(--ink);stroke-width:1.3;fill:none;opacity:.65}
svg .bar.ours,svg .bar.a{fill:var(--ours)}svg .bar.other{fill:var(--other)}
svg .bar.reference{fill:var(--reference)}svg .bar.b{fill:var(--b)}svg .bar.c{fill:var(--c)}
svg .line{fill:none;stroke-width:2}svg .line.a{stroke:var(--a)}svg .line.b{stroke:var(--b)}
svg .line.c{stroke:var(--c)}svg .dot.a{fill:var(--a)}svg .dot.b{fill:var(--b)}svg .dot.c{fill:var(--c)}
footer{color:var(--soft);font-size:.82rem}
@media(max-width:40rem){body{padding:1.4rem .8rem 3rem}section{padding:1.1rem 1rem}td{white-space:nowrap}}
.narrow{display:none;max-width:25rem}.narrow svg{width:100%}
@media screen and (max-width:50rem){.broad{display:none}.narrow{display:block}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
)


def report_page(results: Sequence[Mapping[str, Any]], title: str = "cir-bench") -> str:
    """A page over any number of results, newest first within a kind.

    Args:
        results: from `results.read_result`.
        title: heads the page.
    """
    ordered = sorted(results, key=lambda r: str(r.get("created", "")), reverse=True)
    ordered.sort(key=lambda r: sections.ORDER.index(r["kind"]))
    heads = [(f"result-{number}", head) for number, head in enumerate(_headings(ordered))]
    links = "".join(f"<a href='#{anchor}'>{html.escape(head)}</a>" for anchor, head in heads)
    body = "".join(
        _section(anchor, head, result) for (anchor, head), result in zip(heads, ordered, strict=True)
    )
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p class='lead'>{html.escape(_lead(ordered))}</p>\n"
        f"<nav>{links}</nav>\n{_worse(results)}{sections.across(ordered)}{body}"
        "<footer>Whiskers of a latency reach from the 10th to the 99th percentile. Percentiles are nearest "
        "ranks. Ratios are medians over rounds in which the alternatives took turns.</footer>\n"
        "</body>\n</html>\n"
    )


def _headings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A title for each result; where several have the same, with what tells them apart."""
    heads = [sections.heading(result) for result in results]
    apart: tuple[Callable[[Mapping[str, Any]], str], ...] = (
        lambda result: str(result["machine"].get("name", "?")),
        lambda result: str(result.get("created", ""))[:10],
        lambda result: str(result["commit"])[:7],
    )
    for told in apart:
        seen = Counter(heads)
        heads = [
            f"{head}; {told(result)}" if seen[head] > 1 else head
            for head, result in zip(heads, results, strict=True)
        ]
    return heads


def _lead(results: Sequence[Mapping[str, Any]]) -> str:
    machines = sorted({str(result["machine"].get("name", "?")) for result in results})
    commits = sorted({str(result["commit"]) for result in results})
    return (
        f"{len(results)} result{'s' * (len(results) != 1)} on {', '.join(machines)}; "
        f"commit{'s' * (len(commits) != 1)} {', '.join(commits)}"
    )


def _worse(results: Sequence[Mapping[str, Any]]) -> str:
    """The regressions by name; nothing where no two results are comparable and worse."""
    found = regressions([dict(result) for result in results])
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(str(change))}</li>" for change in found)
    return f"<section><h2>Regressions</h2><ul class='worse'>{items}</ul></section>\n"


def _section(anchor: str, head: str, result: Mapping[str, Any]) -> str:
    doubts = "".join(f"<li>{html.escape(str(doubt))}</li>" for doubt in result.get("doubts", []))
    where = f"{machine_line(result)}; commit {result['commit']}; {result.get('created', '')}"
    return (
        f"<section id='{anchor}'><h2>{html.escape(head)}</h2><p class='sub'>{html.escape(where)}</p>"
        f"{sections.content(result)}"
        f"{f'<ul class=doubts>{doubts}</ul>' if doubts else ''}</section>\n"
    )
