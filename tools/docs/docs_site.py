"""What the documentation's site has beyond docs/: a start page, the help of every command, and llms.txt.

MkDocs calls the functions `on_...`; mkdocs.yml names this file.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "https://github.com/cir-infer/cir-infer/blob/main/"
COMMANDS = {
    "cir-export": ("cir_export.commands.export", "main"),
    "cir-train": ("cir_export.commands.train", "main"),
    "cir-index": ("cir_infer.commands.index", "main"),
    "cir-query": ("cir_infer.commands.query", "main"),
    "cir-serve": ("cir_infer.commands.serve", "main"),
    "cir-cluster": ("cir_infer.commands.cluster", "main"),
    "cir-gallery": ("cir_infer.commands.gallery", "main"),
    "cir-bench": ("cir_bench.commands", "main"),
}


def help_of(command: str, *words: str) -> str:
    """What `COMMAND ... --help` prints."""
    module, function = COMMANDS[command]
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        getattr(import_module(module), function)([*words, "--help"])
    return said.getvalue().strip()


def subcommands(text: str) -> list[str]:
    """The names in a help's `{a,b,c}`."""
    found = re.search(r"\{([a-z0-9,-]+)\}", text)
    return found[1].split(",") if found and "  {" in text else []


def commands_page() -> str:
    """Every command's help, on one page."""
    parts = [
        "# Commands\n\nEach leaves with 0, or with 1 after one line that says why. 2 is wrong usage, "
        "130 an interruption, 141 output that nobody reads any more.\n"
    ]
    for command in COMMANDS:
        text = help_of(command)
        parts.append(f"\n## {command}\n\n```text\n{text}\n```\n")
        for name in subcommands(text):
            parts.append(f"\n### {command} {name}\n\n```text\n{help_of(command, name)}\n```\n")
    return "".join(parts)


def start_page() -> str:
    """README.md, whose links are those of a page in docs/."""
    text = (ROOT / "README.md").read_text("utf-8")
    return re.sub(r"\]\(docs/", "](", text)


def llms(nav: list[Any], site: str) -> str:
    """The pages with their first sentences, as https://llmstxt.org asks."""
    lines = ["# cir-infer", "", "> " + _summary((ROOT / "README.md").read_text("utf-8")), ""]
    for entry in nav:
        for title, target in entry.items():
            if isinstance(target, str):
                continue
            lines += [f"## {title}", ""]
            for page in target:
                ((name, path),) = page.items()
                source = ROOT / "docs" / path
                about = _summary(source.read_text("utf-8")) if source.exists() else "generated from the code"
                lines.append(f"- [{name}]({site}{path.removesuffix('.md')}/): {about}")
            lines.append("")
    return "\n".join(lines)


def _summary(markdown: str) -> str:
    for block in markdown.split("\n\n"):
        text = " ".join(block.split())
        if (
            text
            and not block.startswith("    ")
            and not text.startswith(("#", "!", "|", "```", "-", "<", ":"))
        ):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
            return re.split(r"(?<=\.)\s", plain)[0].rstrip(":")
    return ""


def on_files(files: Files, config: Any) -> Files:
    """Add what is generated."""
    for path, content in (
        ("index.md", start_page()),
        ("commands.md", commands_page()),
        ("llms.txt", llms(config["nav"], config["site_url"])),
    ):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the sources; in the start page, those to anything but a page."""
    markdown = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({SOURCES}\1)", markdown)
    if page.file.src_path == "index.md":
        outside = r"\]\(((?:kernels|models|tests|examples|benchmarks|[A-Z]+\.md|LICENSE)[^)]*)\)"
        markdown = re.sub(outside, rf"]({SOURCES}\1)", markdown)
    return markdown
