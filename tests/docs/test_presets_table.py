"""The table of models on the page about photographs is the program's."""

from __future__ import annotations

from pathlib import Path

from cir_export.commands.presets import presets_markdown

PAGE = Path(__file__).parents[2] / "docs" / "your-photos.md"


def test_the_page_has_the_table_of_the_program() -> None:
    assert presets_markdown() in PAGE.read_text(encoding="utf-8")
