"""A bundle as a model repository: its graphs, each a model, and the search over a gallery, another."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cir_export.triton.configuration import graph_configuration, search_configuration
from cir_infer.bundle import Bundle
from cir_infer.bundle.model import write_model
from cir_infer.errors import ExportError, UsageError, shown
from cir_infer.processes.outputs import scratch_beside
from cir_infer.runtime.bundle_graphs import open_bundle_graphs
from cir_infer.runtime.plan_policy import PlanPolicy

__all__ = ["searched", "write_repository"]

_LARGEST_BATCH = 32
_MOST_HITS = 200
_MODEL = '''"""Written by cir-export: queries over a gallery. Needs cir-infer in Triton's Python."""

from cir_infer.serving.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def searched(bundle: str | Path, gallery: str | Path | None) -> Path:
    """The gallery that a repository names: the given one, or the bundle's own. It need not be there yet."""
    return Path(Path(bundle).with_suffix(".gallery") if gallery is None else gallery).absolute()


def write_repository(bundle: str | Path, folder: str | Path, gallery: str | Path | None = None) -> list[str]:
    """Write a model repository for Triton; it takes the place of nothing.

        <name>_image/1/model.onnx, <name>_text, <name>_compose, <name>_reference    ONNX Runtime backend
        <name>/1/model.py, bundle.cir                                               Python backend: the search

    Args:
        bundle: its path; its name without the ending is that of the models.
        folder: the repository; models are added to one that is there.
        gallery: what is searched; by default the bundle's own. It stays where it is.

    Returns:
        The names of the models.

    Raises:
        BundleError: the bundle is none.
        ExportError: a model of one of these names is there, or the folder cannot be written.
        UsageError: the bundle's name is none for a model.
    """
    path, place = Path(bundle), Path(folder)
    name = path.stem
    if re.fullmatch(r"[A-Za-z][\w.-]{0,100}", name) is None:
        raise UsageError(f"{shown(name)} is no name for a model; rename the bundle to letters, digits, _ - .")
    opened = Bundle(path)
    target = searched(path, gallery)
    manifest = opened.manifest
    policy = PlanPolicy("refuse", manifest.precision, manifest.int8_form, 1)
    graphs = open_bundle_graphs(opened, "cpu", None, policy).get().graphs
    wanted = [kind for kind in ("image", "reference", "text", "compose") if kind in graphs]
    names = [f"{name}_{kind}" for kind in wanted] + [name]
    for one in names:
        if (place / one).exists():
            raise ExportError(f"{place / one} is there already; remove it, or choose another folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with scratch_beside(place / name) as draft:
            for kind in wanted:
                version = draft / f"{name}_{kind}" / "1"
                version.mkdir(parents=True)
                write_model(opened.graph(kind), version / "model.onnx")
                graph = graphs[kind]
                text = graph_configuration(f"{name}_{kind}", graph.inputs, graph.outputs, _LARGEST_BATCH)
                (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
            version = draft / name / "1"
            version.mkdir(parents=True)
            (version / "model.py").write_text(_MODEL, encoding="utf-8")
            shutil.copyfile(path, version / "bundle.cir")
            parameters = {"bundle": "bundle.cir", "gallery": str(target), "max_k": str(_MOST_HITS)}
            reads = [tensor.name for tensor in graphs["compose"].inputs]
            text = search_configuration(name, len(manifest.terms), parameters, _LARGEST_BATCH, reads)
            (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
            for one in names:
                (draft / one).rename(place / one)
    except OSError as error:
        raise ExportError(f"{place} cannot be written: {error.strerror or error}") from error
    return names
