"""A process that renders, started by `generation`: a job is one batch of scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cir_eval.datasets.scenes import layout
from cir_eval.datasets.scenes.rendering import render
from cir_eval.datasets.scenes.scene import Scene
from cir_infer.processes.pool import serve

__all__ = ["render_batch"]


def render_batch(job: dict[str, Any]) -> int:
    """Render and write one batch of scenes; how many pictures that were.

    Args:
        job: "root", "split", "views", "size", and "ids" with their "scenes".

    Raises:
        OSError: a picture cannot be written.
    """
    from PIL import Image

    for id_, cells in zip(job["ids"], job["scenes"], strict=True):
        scene = Scene.from_json(cells)
        for view in job["views"]:
            picture = Image.fromarray(render(scene, view, job["size"]))
            picture.save(layout.image(Path(job["root"]), job["split"], view, id_), compress_level=3)
    return len(job["ids"]) * len(job["views"])


if __name__ == "__main__":
    serve(render_batch)
