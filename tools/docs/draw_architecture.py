#!/usr/bin/env python3
"""Draws docs/images/{architecture,gallery}.svg from the code's imports: rooms, and who imports whom.

    python3 tools/docs/draw_architecture.py            # writes the pictures
    python3 tools/docs/draw_architecture.py --check    # fails where one is out of date

A room is a package below one of ours, or a file at the door of cir_infer; in the second picture, those of
cir_infer.gallery. It stands above all that it imports, so no arrow may point up; one that does is drawn
in red. An arrow beside which a longer way leads to the same room is left out.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "images"
HOMES = {
    "cir_infer": ROOT / "cir_infer",
    "cir_eval": ROOT / "evaluation" / "cir_eval",
    "cir_export": ROOT / "export" / "cir_export",
    "cir_bench": ROOT / "benchmarks" / "cir_bench",
}
WHOLE = ("cir_eval", "cir_export", "cir_bench")
"""Packages that are drawn as one room."""
COMMON = "cir_infer.errors"
"""Imported by every room, so its arrows are left out."""
WIDTH, BOX, HEIGHT, LEVEL = 980, 118, 34, 86


def room_of(module: str, house: str) -> str | None:
    """The room of a house in which a module stands: of all packages (""), or of one; None outside of it."""
    parts = module.split(".")
    if house:
        deep = house.count(".") + 2
        return ".".join(parts[:deep]) if module.startswith(f"{house}.") else None
    return parts[0] if parts[0] in WHOLE else ".".join(parts[:2])


def imported(tree: ast.AST) -> Iterator[str]:
    """What a file imports when it runs, wherever in it; not what only its annotations need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from imported(node)


def arrows(house: str = "") -> dict[str, set[str]]:
    """Each room of a house with the rooms that it imports."""
    rooms: dict[str, set[str]] = {}
    files = {
        ".".join(
            [package, *(part for part in path.relative_to(home).with_suffix("").parts if part != "__init__")]
        ): path
        for package, home in HOMES.items()
        for path in sorted(home.rglob("*.py"))
    }
    known = {room for module in files if module != "cir_infer" and (room := room_of(module, house))}
    for module, path in files.items():
        text = path.read_text("utf-8")
        if (
            module == "cir_infer" or " was at first: the same names" in text
        ):  # the door itself, and old addresses
            continue
        room = room_of(module, house)
        if room is None:
            continue
        targets = rooms.setdefault(room, set())
        for name in imported(ast.parse(text)):
            target = room_of(name, house) if name.startswith(tuple(HOMES)) else None
            if target in known - {room, COMMON}:
                targets.add(target)
    rooms.pop(COMMON, None)
    return rooms


def levels(rooms: dict[str, set[str]]) -> dict[str, int]:
    """How high each room stands: above all that it imports; arrows of a circle are taken as they come."""
    found: dict[str, int] = {}

    def level(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            return 0
        if room not in found:
            below = [level(other, (*above, room)) for other in sorted(rooms[room])]
            found[room] = 1 + max(below, default=-1)
        return found[room]

    for room in sorted(rooms):
        level(room, ())
    return found


def needed(rooms: dict[str, set[str]], height_of: dict[str, int]) -> dict[str, set[str]]:
    """The arrows without those that others imply."""

    def reached(room: str) -> set[str]:
        down = {other for other in rooms[room] if height_of[other] < height_of[room]}
        return down.union(*(reached(other) for other in down))

    return {
        room: {
            o
            for o in others
            if not any(o in reached(via) for via in others - {o} if height_of[via] < height_of[room])
        }
        for room, others in rooms.items()
    }


def draw(rooms: dict[str, set[str]], house: str, title: str) -> str:
    """The picture."""
    height_of = levels(rooms)
    rooms = needed(rooms, height_of)
    top = max(height_of.values())
    floors = [sorted(room for room in rooms if height_of[room] == number) for number in range(top, -1, -1)]
    # A room stands near those that import it, which cross the fewest arrows.
    place: dict[str, tuple[float, float]] = {}
    for number, floor in enumerate(floors):
        users = {room: [place[other][0] for other in place if room in rooms[other]] for room in floor}
        middle = {room: sum(xs) / len(xs) if xs else WIDTH / 2 for room, xs in users.items()}
        floor.sort(key=lambda room: (middle[room], room))
        # Floors lean left and right in turn, so that a long arrow runs beside the rooms between its ends.
        step = WIDTH / (len(floor) + 1)
        lean = (-1) ** number * min(step / 2, 170) if len(floor) < 3 else 0
        for column, room in enumerate(floor, 1):
            place[room] = (column * step + lean, 24 + number * LEVEL)
    height = 24 + top * LEVEL + HEIGHT + 24
    lines, boxes = [], []
    for room in sorted(rooms):
        x, y = place[room]
        for other in sorted(rooms[room]):
            u, v = place[other]
            kind = "arrow" if v > y else "arrow up"
            bend = (v - y - HEIGHT) / 2
            lines.append(
                f'<path class="{kind}" marker-end="url(#tip)" d="M{x:.0f},{y + HEIGHT:.0f} '
                f'C{x:.0f},{y + HEIGHT + bend:.0f} {u:.0f},{v - bend:.0f} {u:.0f},{v - 3:.0f}"/>'
            )
        name = room.removeprefix(f"{house or 'cir_infer'}.")
        file = ROOT.joinpath(*room.split(".")).with_suffix(".py")
        kind = "host" if room in WHOLE else "door" if file.exists() else "room"
        boxes.append(
            f'<rect class="{kind}" x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + 22:.0f}">{escape(name)}</text>'
        )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" \
aria-label="{title}, each above what it imports">
<style>
text {{ font: 13px system-ui, sans-serif; text-anchor: middle; fill: #1a1a1a }}
rect {{ stroke-width: 1.5 }}
.room {{ fill: #eef4fb; stroke: #4a7fb5 }} .door {{ fill: #fff6e0; stroke: #c98a00 }}
.host {{ fill: #eef8ee; stroke: #4c9a4c }}
.arrow {{ fill: none; stroke: #8a8a8a; stroke-width: 1 }}
.up {{ stroke: #d00000; stroke-width: 2 }} .tip {{ fill: #8a8a8a }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #eaeaea }}
.room {{ fill: #17263a }} .door {{ fill: #3a2d10 }}
.host {{ fill: #16301a }} .arrow {{ stroke: #777 }} .tip {{ fill: #777 }} }}
</style>
<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">\
<path class="tip" d="M0,0 L6,3 L0,6 z"/></marker></defs>
{chr(10).join(lines)}
{chr(10).join(boxes)}
</svg>
"""


def main() -> None:
    """Write the pictures, or compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for file, house, title in (
        ("architecture.svg", "", "The rooms of the code"),
        ("gallery.svg", "cir_infer.gallery", "The rooms of the gallery"),
    ):
        path, picture = PICTURES / file, draw(arrows(house), house, title)
        if not args.check:
            path.write_text(picture, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != picture:
            sys.exit(f"{path.relative_to(ROOT)} is out of date; run tools/docs/draw_architecture.py")


if __name__ == "__main__":
    main()
