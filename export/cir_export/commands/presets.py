"""`cir-export --list`: the public models that are read, as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cir_export.presets import PRESETS
from cir_infer.console.tables import format_table

__all__ = ["presets_json", "presets_markdown", "shown_presets"]


def shown_presets() -> str:
    """The table, and under each name what it is good for and under which terms."""
    header = ["model", "parameters", "image", "MACs", "row"]
    rows = [
        [
            preset.name,
            f"{preset.million:,} M",
            f"{preset.size} x {preset.size}",
            f"{preset.macs / 1e9:.1f} G",
            f"{preset.row}",
        ]
        for preset in PRESETS
    ]
    notes = [
        f"{preset.name}\n  good for       {preset.good_for}\n  weights        {preset.weights_licence}\n"
        f"  training data  {preset.data_licence}"
        for preset in PRESETS
    ]
    return "\n".join(
        [
            format_table(header, rows, right=[1, 2, 3, 4]),
            "\nMACs: multiply-accumulates of the image encoder, for one image.\n",
            *notes,
            "\n  hf download NAME --local-dir FOLDER && cir-export FOLDER\n\n"
            "Read from files of their own (docs/systems.md): MagicLens, Pic2Word, SEARLE, LinCIR, CLIP4Cir,\n"
            "Bi-BLIP4CIR, CoVR-2, SPRC, ARTEMIS.",
        ]
    )


def presets_markdown() -> str:
    """The same as a table for a page, docs/your-photos.md."""
    lines = [
        "| model | parameters | image | MACs | row | weights | training data | good for |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{p.name}` | {p.million:,} M | {p.size} x {p.size} | {p.macs / 1e9:.1f} G | {p.row} | "
        f"{p.weights_licence} | {p.data_licence} | {p.good_for} |"
        for p in PRESETS
    ]
    return "\n".join(lines)


def presets_json() -> dict[str, Any]:
    """The same as plain values."""
    return {"presets": [{**asdict(preset), "macs": preset.macs} for preset in PRESETS]}
