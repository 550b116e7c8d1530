"""An engine: a bundle opened on a device. Images and texts go in, embeddings and query terms come out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import FeatureInput, Manifest
from cir_infer.console.progress import progress_bar
from cir_infer.errors import ImageError, TextError, UsageError, shown
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import Text, TextReader
from cir_infer.runtime.chains import Chains
from cir_infer.runtime.devices import open_graphs
from cir_infer.runtime.graph import Array
from cir_infer.runtime.plan_policy import PlanPolicy
from cir_infer.runtime.plan_policy import missing_plan as chosen_policy
from cir_infer.runtime.samples import Samples, sample_feeds
from cir_infer.runtime.signature import check_signature
from cir_infer.scoring.contract import QueryTerms, Scorer

__all__ = ["Engine"]

Floats = npt.NDArray[np.float32]


class Engine:
    """A bundle opened on a device. Threads may share one.

    Args:
        bundle: the bundle, or its path.
        device: "auto", "cpu", "cuda", "tensorrt", or "ort-tensorrt" for ONNX Runtime's TensorRT provider. A
            device asked for by name is used or refused; "auto" says through `logging` what it took.
        threads: CPU threads inside an operator, and of a scorer; None lets the backend choose.
        missing_plan: where "tensorrt" finds no plan for this GPU: "build" it, once, in minutes; run on
            "onnxruntime" instead; "refuse". None is $CIR_MISSING_PLAN, or "build".

    Attributes:
        manifest: what the bundle says about itself.
        device_asked: the `device` argument; `device` is what came of it.
        threads: as given.

    Raises:
        BundleError: the bundle is missing, damaged or of a newer format, or its graphs are not what
            docs/architecture.md says.
        DeviceError: the device cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        missing_plan: str | None = None,
    ) -> None:
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.manifest: Manifest = self._bundle.manifest
        self.threads = threads
        spec = self.manifest.text
        self._texts = None if spec is None else TextReader(self._bundle.tokenizer(), spec)
        models = {name: self._bundle.graph(name) for name in self.manifest.graphs}
        self.device_asked = device
        policy = PlanPolicy(
            chosen_policy(missing_plan),
            self.manifest.precision,
            self.manifest.int8_form,
            spec.max_tokens if spec is not None else 1,
        )
        self._backend, self._graphs = open_graphs(models, device, threads, policy)
        for name, graph in self._graphs.items():
            check_signature(name, graph, self.manifest)
        self._decoders = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="cir-decode")

    @property
    def path(self) -> str:
        """The bundle's path."""
        return str(self._bundle.path)

    @property
    def device(self) -> str:
        """Where the graphs run: "cpu", "cuda", "tensorrt" or "ort-tensorrt"."""
        return self._backend.device

    @property
    def fingerprint(self) -> str:
        """What this bundle's gallery rows mean; equal fingerprints make equal rows."""
        return self.manifest.fingerprint

    @property
    def dimension(self) -> int:
        """D, the length of a gallery row."""
        return self.manifest.embedding_dim

    @property
    def needs_reference(self) -> bool:
        """Whether a query needs the reference image, i.e. compose takes `reference`."""
        return any(tensor.name == "reference" for tensor in self._graphs["compose"].inputs)

    @property
    def needs_text(self) -> bool:
        """Whether a query needs the text, i.e. compose takes `text`."""
        return any(tensor.name == "text" for tensor in self._graphs["compose"].inputs)

    @property
    def row_is_reference(self) -> bool:
        """Whether a gallery row serves as the reference embedding, so that a Hit needs no image."""
        return "reference" not in self._graphs

    def encode_images(
        self, images: Iterable[ImageLike], batch_size: int = 32, progress: bool = False
    ) -> Floats:
        """Gallery rows of images.

        Args:
            images: paths, bytes, Pillow images or uint8 (H, W, 3) arrays; read one batch ahead.
            batch_size: images in one run of the graph.
            progress: show a bar on a terminal.

        Returns:
            float32 (N, D).

        Raises:
            ImageError: an image cannot be read; the message says which.
            DeviceError: the device failed.
        """
        return self._encode("image", "embedding", images, batch_size, progress)

    def encode_prepared(self, batch: Array) -> Floats:
        """Gallery rows of one batch that `cir_infer.inputs.preprocess.preprocess` has prepared elsewhere.

        Args:
            batch: uint8 (n, H, W, 3), or float32 (n, F) for a bundle on features.

        Returns:
            float32 (n, D).

        Raises:
            DeviceError: the device failed.
        """
        return self._graphs["image"].run({"image": batch})["embedding"]

    def encode_references(self, images: Iterable[ImageLike], batch_size: int = 32) -> Floats:
        """Reference embeddings, as the query side sees images.

        Returns:
            float32 (N, ...): gallery rows, unless the system has a `reference` graph.

        Raises:
            ImageError: an image cannot be read; the message says which.
            DeviceError: the device failed.
        """
        if self.row_is_reference:
            return self.encode_images(images, batch_size)
        return self._encode("reference", "reference", images, batch_size, progress=False)

    def encode_texts(self, texts: Sequence[Text], batch_size: int = 32, pad_to_batch: bool = False) -> Floats:
        """Text embeddings.

        Args:
            texts: strings, or lists of captions that the system joins as its authors do.
            batch_size: texts in one run of the graph, in the given order.
            pad_to_batch: let the encoder read the padding of a batch as text, as the authors' code
                does for their LSTM variant. An embedding then depends on the longest text beside
                it; only for reproducing published numbers, together with their batch size.

        Returns:
            float32 (N, H).

        Raises:
            TextError: a text is empty, too long, or nothing in it can be read.
            UsageError: the system reads no text.
            DeviceError: the device failed.
        """
        if self._texts is None:
            raise UsageError(f"the system {shown(self.manifest.system)} of {self.path} reads no text")
        if isinstance(texts, str):
            raise TextError('expected a list of texts, got one text; pass ["..."]')
        graph = self._graphs["text"]
        outputs = [np.empty((0, graph.outputs[0].shape[-1] or 0), np.float32)]
        for start in range(0, len(texts), _checked_batch(batch_size)):
            ids, lengths = self._texts.read(texts[start : start + batch_size])
            if pad_to_batch:
                lengths = np.full_like(lengths, ids.shape[1])
            feeds = {"tokens": ids, "lengths": lengths}
            outputs.append(graph.run({tensor.name: feeds[tensor.name] for tensor in graph.inputs})["text"])
        return np.concatenate(outputs[1:] or outputs)

    def compose(self, reference: Floats | None, text: Floats | None) -> QueryTerms:
        """Query terms of reference and text embeddings.

        Args:
            reference: float32 (Q, ...) from `encode_references`, or gallery rows where
                `row_is_reference`; may be None unless `needs_reference`.
            text: float32 (Q, H) from `encode_texts`; may be None unless `needs_text`.

        Raises:
            UsageError: one that is needed is missing, or their lengths differ.
            ScoringError: the graph's result is not finite.
            DeviceError: the device failed.
        """
        graph = self._graphs["compose"]
        given = {"reference": reference, "text": text}
        feeds: dict[str, Array] = {}
        for tensor in graph.inputs:
            value = given[tensor.name]
            if value is None:
                raise UsageError(
                    f"the system {shown(self.manifest.system)} needs a {tensor.name} for a query"
                )
            feeds[tensor.name] = np.ascontiguousarray(value, np.float32)
        if len({len(value) for value in feeds.values()}) != 1:
            raise UsageError(
                f"{len(feeds['reference'])} references for {len(feeds['text'])} texts; expected one for each"
            )
        outputs = graph.run(feeds)
        return QueryTerms(outputs["numerators"], outputs.get("weights"), self.manifest.terms)

    def prepare(self, image: ImageLike) -> Array:
        """One image as the encoders read it, without a batch axis.

        Returns:
            uint8 (H, W, 3), or float32 (F,) for a bundle on features.

        Raises:
            ImageError: the image cannot be read.
        """
        return self._prepare(0, image)

    def warm_up(self) -> Samples:
        """Run every graph once, so that later calls find kernels loaded and buffers taken.

        Returns:
            The inputs and embeddings of the run; random ones, of no meaning.

        Raises:
            DeviceError: the device failed.
        """
        made: dict[str, Array] = {}
        for name, graph in self._graphs.items():
            if name != "compose":
                feeds = sample_feeds(graph.inputs, 1, 8)
                made.update(feeds)
                made.update(graph.run(feeds))
        reference = made.get("reference", made["embedding"])
        text = made.get("text")
        self.compose(reference if self.needs_reference else None, text)
        return Samples(made["image"], reference, text)

    def chains(self, scorer: Scorer) -> Chains | None:
        """What answers single queries in one launch, None where graphs and scorer do not share a GPU."""
        return self._backend.chains(self._graphs, scorer, self.manifest.terms)

    def describe(self) -> dict[str, Any]:
        """The bundle, the device and what runs on it, as plain values that JSON can hold."""
        manifest = self.manifest
        image = manifest.image
        return {
            "bundle": self.path,
            "system": manifest.system,
            "created_by": manifest.created_by,
            "fingerprint": manifest.fingerprint,
            "precision": manifest.precision,
            "dimension": manifest.embedding_dim,
            "terms": list(manifest.terms),
            "weighted": manifest.weighted,
            "image": [image.size] if isinstance(image, FeatureInput) else [image.height, image.width, 3],
            "graphs": sorted(manifest.graphs),
            "refines_without_image": self.row_is_reference,
            "device": self.device,
            "backend": self._backend.describe(),
        }

    def _encode(
        self, name: str, output: str, images: Iterable[ImageLike], batch_size: int, progress: bool
    ) -> Floats:
        if isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "getbands"):
            raise UsageError("expected a list of images, got one image; pass [image]")
        total = len(images) if isinstance(images, (Sequence, np.ndarray)) else None
        graph = self._graphs[name]
        batches = progress_bar(
            self._batches(images, _checked_batch(batch_size)),
            total,
            "encoding",
            "image",
            progress,
            batch_size,
        )
        outputs = [np.empty((0, *(length or 0 for length in graph.outputs[0].shape[1:])), np.float32)]
        outputs += [graph.run({"image": batch})[output] for batch in batches]
        return np.concatenate(outputs[1:] or outputs)

    def _batches(self, images: Iterable[ImageLike], size: int) -> Iterator[Array]:
        """Prepared batches (n, ...); while the graph runs on one, threads prepare the next."""
        if isinstance(images, Sequence) and len(images) == 1:
            yield self._prepare(0, images[0])[None]  # nothing to do meanwhile, so no thread to wake
            return
        numbered = enumerate(images)
        waiting: deque[list[Future[Array]]] = deque()
        try:
            while chunk := list(islice(numbered, size)):
                waiting.append([self._decoders.submit(self._prepare, *item) for item in chunk])
                if len(waiting) > 1:
                    yield _stack(waiting.popleft())
            while waiting:
                yield _stack(waiting.popleft())
        finally:
            for future in chain.from_iterable(waiting):
                future.cancel()

    def _prepare(self, number: int, image: ImageLike) -> Array:
        try:
            return preprocess(image, self.manifest.image)
        except ImageError as error:
            raise ImageError(f"image {number}: {error}") from error


def _stack(batch: list[Future[Array]]) -> Array:
    try:
        return np.stack([future.result() for future in batch])
    finally:
        for future in batch:
            future.cancel()


def _checked_batch(size: int) -> int:
    if type(size) is not int or size < 1:
        raise UsageError(f"batch_size is {shown(size)}; expected a whole number of at least 1")
    return size
