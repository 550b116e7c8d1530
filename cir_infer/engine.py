"""An engine: a bundle opened on a device. Images and texts go in, embeddings and query terms come out.

Long because every public method says what it takes, gives and raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from cir_infer.bundle import Bundle
from cir_infer.bundle.facts import bundle_facts
from cir_infer.bundle.manifest import FeatureInput, Manifest, PixelInput
from cir_infer.bundle.orientation import oriented
from cir_infer.console.progress import progress_bar, progress_of
from cir_infer.errors import BundleError, TextError, UsageError, shown
from cir_infer.inputs.arguments import (
    checked_count,
    checked_flag,
    checked_list,
    checked_number,
    checked_word,
)
from cir_infer.inputs.images import ImageLike, ready_for_pictures
from cir_infer.inputs.open_files import contents
from cir_infer.inputs.preparing import Preparation, PreparedImage, checked_images
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import ReadText, Text, TextReader
from cir_infer.inputs.unknown_words import Together, said_together
from cir_infer.processes.collector import collector_paused
from cir_infer.processes.fork import PerProcess
from cir_infer.runtime.bundle_graphs import open_bundle_graphs, read_ahead
from cir_infer.runtime.chains import Chains
from cir_infer.runtime.compose_parts import Begun, ComposeGraph
from cir_infer.runtime.devices import OpenedGraphs
from cir_infer.runtime.encoding import Encoded, OnError, encode_batches
from cir_infer.runtime.explain_graph import InParts, open_explain_graph, run_in_parts
from cir_infer.runtime.feeds import check_feed
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.openvino.one_row import OneOrMany
from cir_infer.runtime.plan_policy import PlanPolicy
from cir_infer.runtime.plan_policy import missing_plan as chosen_policy
from cir_infer.runtime.samples import SAMPLE_TOKENS, Samples, sample_feeds
from cir_infer.runtime.signature import check_signature
from cir_infer.scoring.contract import QueryTerms, Scorer

__all__ = ["Engine"]

Floats = npt.NDArray[np.float32]


class Engine:
    """A bundle opened on a device. Threads may share one, and a forked child may use it on the processor.

    Close it, or use it in a `with` block, to give its memory back at once. A copy, or what comes out of
    pickle, is another engine on the same bundle, opened by its path.

    Args:
        bundle: the bundle, or its path.
        device: "auto", "cpu" for ONNX Runtime, "openvino" for OpenVINO on the same processor, "openvino-gpu"
            with the encoders of images on an Intel GPU, "cuda", "tensorrt", or "ort-tensorrt" for ONNX
            Runtime's TensorRT provider. A device asked for by name is used or refused; "auto" says through
            `logging` what it took.
        threads: CPU threads inside an operator, and of a scorer; None lets the backend choose among
            those that this process may use.
        missing_plan: where "tensorrt" finds no plan for this GPU: "build" it, once, in minutes; run on
            "onnxruntime" instead; "refuse". None is $CIR_MISSING_PLAN, or "build".
        exif_orientation: turn photos upright as their EXIF tag says, or not; None does what the bundle
            says. Rows of images differ, so the fingerprint does.

    Attributes:
        manifest: what the bundle says about itself, with `exif_orientation` as chosen.
        device_asked: the `device` argument.
        device: where the graphs run, one of those.
        threads: as given.
        needs_reference: whether a query needs the reference image, i.e. compose takes `reference`.
        needs_text: whether a query needs the text, i.e. compose takes `text`.
        row_is_reference: whether a gallery row serves as the reference embedding, so that a Hit needs no
            image.

    Raises:
        BundleError: the bundle is missing, damaged or of a newer format, or its graphs are not what
            docs/architecture.md says.
        DeviceError: the device cannot be used.
        UsageError: an argument is not what is said above.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        missing_plan: str | None = None,
        exif_orientation: bool | None = None,
    ) -> None:
        self.threads = None if threads is None else checked_number("threads", threads, instead=", or None")
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        if exif_orientation is not None:
            exif_orientation = checked_flag("exif_orientation", exif_orientation)
        self.manifest: Manifest = oriented(self._bundle.manifest, exif_orientation)
        self._choices = (device, self.threads, missing_plan, exif_orientation)
        spec = self.manifest.text
        self.device_asked = device
        policy = PlanPolicy(
            chosen_policy(missing_plan),
            self.manifest.precision,
            self.manifest.int8_form,
            spec.max_tokens if spec is not None else 1,
        )
        # What is kept of the graphs is read in a thread, while this one imports what a query needs.
        ahead = read_ahead(self._bundle, device)
        with collector_paused():
            self._texts = self._text_reader()
            if isinstance(self.manifest.image, PixelInput):
                ready_for_pictures()
        self._opened = open_bundle_graphs(self._bundle, device, self.threads, policy, ahead)
        opened = self._opened.get()
        for name, graph in opened.graphs.items():
            check_signature(name, graph, self.manifest)
        self.device = opened.backend.device
        composed = {tensor.name for tensor in opened.graphs["compose"].inputs}
        self.needs_reference = "reference" in composed
        self.needs_text = "text" in composed
        self.row_is_reference = self.manifest.refines_without_image
        here = self._bundle, self.manifest, self.device, self.threads
        self._explaining: PerProcess[Graph] = PerProcess(partial(open_explain_graph, *here))
        self._preparation = Preparation(partial(_prepare, spec=self.manifest.image))
        self._closed = False

    # ---- its life

    def close(self) -> None:
        """Give graphs and threads back. Calls that are under way in other threads are answered."""
        self._closed = True
        self._opened.drop()
        self._explaining.drop()
        self._preparation.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._bundle.manifest.to_json(), self._choices)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"on {self.device}"
        return f"<Engine {self.path}, {self.manifest.system}, {state}>"

    # ---- what it is

    @property
    def path(self) -> str:
        """The bundle's path."""
        return str(self._bundle.path)

    @property
    def fingerprint(self) -> str:
        """What this bundle's gallery rows mean; equal fingerprints make equal rows."""
        return self.manifest.fingerprint

    @property
    def dimension(self) -> int:
        """D, the length of a gallery row, or of each of its vectors."""
        return self.manifest.embedding_dim

    @property
    def adds_up(self) -> bool:
        """Whether gallery rows are known as sums over positions, so that explanations are exact."""
        return self.manifest.explain is not None

    @property
    def tokens_per_item(self) -> int:
        """M, how many vectors a gallery row is."""
        return self.manifest.tokens_per_item

    @property
    def reads_padding(self) -> bool:
        """Whether the authors' code of this model reads the padding of a batch as text."""
        return self.manifest.provenance.get("authors_read_padding") is True

    def require_padding(self) -> None:
        """Refuses to read padding as text where the model's authors do not.

        Raises:
            UsageError: see `reads_padding`.
        """
        if not self.reads_padding:
            raise UsageError(
                f"the text encoder of {self.path} was not trained to read the padding of a batch, and would "
                "give other embeddings; leave pad_to_batch (--authors-batch) out. It is for the LSTM of "
                "naver/artemis; if this is one, export its checkpoint again, older bundles do not say so"
            )

    def describe(self) -> dict[str, Any]:
        """The bundle, the device and what runs on it, as plain values that JSON can hold.

        Raises:
            UsageError: the engine is closed.
        """
        return {
            "bundle": self.path,
            **bundle_facts(self.manifest, None if self._texts is None else self._texts.vocabulary),
            "device": self.device,
            "backend": self._here().backend.describe(),
            **self._by_kernels(),
        }

    def _by_kernels(self) -> dict[str, str]:
        """The graph that kernels of ours run on the processor, where one does."""
        found = getattr(self._graphs.get("text"), "instruction_set", None)
        return {} if found is None else {"text_encoder": f"cir-infer, {found}"}

    # ---- encoding

    @overload
    def encode_images(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        progress: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> Floats: ...

    @overload
    def encode_images(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        progress: bool = False,
        *,
        errors: Literal["return"],
    ) -> Encoded: ...

    def encode_images(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        progress: bool = False,
        errors: OnError = "raise",
    ) -> Floats | Encoded:
        """Gallery rows of images.

        Args:
            images: paths, bytes, open binary files, Pillow images or uint8 (H, W, 3) arrays; read one
                batch ahead.
            batch_size: images in one run of the graph.
            progress: say how far it is: a bar on a terminal, elsewhere log lines.
            errors: "raise" the error of the first image that cannot be read; "return" the errors beside
                the rows of the others.

        Returns:
            float32 (N, D), or (N, M, D) where a row is M vectors; with errors="return" an `Encoded` that
            holds them.

        Raises:
            ImageError: an image cannot be read; the message says which, counted from 0.
            UsageError: an argument is not what is said above, or the engine is closed.
            DeviceError: the device failed.
        """
        return self._encode("image", "embedding", images, batch_size, progress, errors)

    def encode_prepared(self, batch: Array) -> Floats:
        """Gallery rows of one batch that `cir_infer.inputs.preprocess.preprocess` has prepared elsewhere.

        Args:
            batch: uint8 (n, H, W, 3), or float32 (n, F) for a bundle on features.

        Returns:
            float32 (n, D), or (n, M, D).

        Raises:
            UsageError: the batch has another type or shape, or the engine is closed.
            DeviceError: the device failed.
        """
        graph = self._graphs["image"]
        check_feed("batch", batch, graph.inputs[0])
        return graph.run({"image": batch})["embedding"]

    def encode_prepared_references(self, batch: Array) -> Floats:
        """Reference embeddings of one prepared batch; see `encode_prepared` and `encode_references`."""
        if self.row_is_reference:
            return self.encode_prepared(batch)
        graph = self._graphs["reference"]
        check_feed("batch", batch, graph.inputs[0])
        return graph.run({"image": batch})["reference"]

    def encode_in_parts(self, batch: Array) -> InParts:
        """Gallery rows of one prepared batch, with the sums over positions that they are.

        Args:
            batch: uint8 (n, H, W, 3), see `encode_prepared`.

        Raises:
            UsageError: the bundle knows no such sums (`adds_up`), the batch has another type or shape, or
                the engine is closed.
            BundleError: the graph for it is not what docs/architecture.md says.
            DeviceError: the device failed.
        """
        if not self.adds_up:
            raise UsageError(f"{self.path} holds no graph that explains rows; export the model again")
        self._here()
        graph = self._explaining.get()
        check_feed("batch", batch, graph.inputs[0])
        return run_in_parts(graph, batch, self.manifest)

    @overload
    def encode_references(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        progress: bool = False,
        errors: Literal["raise"] = "raise",
    ) -> Floats: ...

    @overload
    def encode_references(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        progress: bool = False,
        *,
        errors: Literal["return"],
    ) -> Encoded: ...

    def encode_references(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        progress: bool = False,
        errors: OnError = "raise",
    ) -> Floats | Encoded:
        """Reference embeddings, as the query side sees images; see `encode_images`.

        Returns:
            float32 (N, ...): gallery rows, unless the system has a `reference` graph; with
            errors="return" an `Encoded` that holds them.

        Raises:
            ImageError: an image cannot be read; the message says which.
            UsageError: an argument is wrong, or the engine is closed.
            DeviceError: the device failed.
        """
        name, output = ("image", "embedding") if self.row_is_reference else ("reference", "reference")
        return self._encode(name, output, images, batch_size, progress, errors)

    def encode_texts(
        self,
        texts: Iterable[Text],
        batch_size: int = 32,
        pad_to_batch: bool = False,
        together: Together | None = None,
        progress: bool = False,
    ) -> Floats:
        """Text embeddings.

        Args:
            texts: strings, or lists of captions that the system joins as its authors do.
            batch_size: texts in one run of the graph, in the given order.
            pad_to_batch: let the encoder read the padding of a batch as text, as the authors' code
                does for their LSTM variant. An embedding then depends on the longest text beside
                it; only for reproducing published numbers, together with their batch size, and only
                where `reads_padding`.
            together: of texts whose unknown words are told together, see `TextReader.read_one`.
            progress: see `encode_images`.

        Returns:
            float32 (N, ...), as the system's text graph gives them.

        Raises:
            TextError: a text is empty, too long, or nothing in it can be read; the message says which.
            UsageError: the system reads no text, or no padding where `pad_to_batch` asks for it; an
                argument is wrong, or the engine is closed.
            DeviceError: the device failed.
        """
        size = checked_count("batch_size", batch_size)
        checked_flag("pad_to_batch", pad_to_batch)
        self._reader()
        if pad_to_batch:
            self.require_padding()
        total = len(texts) if isinstance(texts, Sequence) else None
        bar = checked_flag("progress", progress)
        numbered = enumerate(checked_list("texts", texts, "text"))
        outputs: list[Floats] = []
        with said_together(together) as news, progress_of(total, "encoding", "text", bar) as encoded:
            while reads := [self._numbered_text(at, text, news) for at, text in islice(numbered, size)]:
                outputs.append(self.encode_read(reads, pad_to_batch))
                encoded(len(reads))
        return np.concatenate(outputs or [self.encode_read([])])

    @property
    def text_reader(self) -> TextReader:
        """What turns texts into tokens.

        Raises:
            UsageError: the system reads no text.
        """
        return self._reader()

    def read_text(self, text: Text) -> ReadText:
        """A text as tokens, and the words of it that the model does not know.

        Raises:
            TextError: it is empty, too long, or nothing in it can be read.
            UsageError: the system reads no text.
        """
        return self._reader().read_one(text)

    def encode_read(self, reads: Sequence[ReadText], pad_to_batch: bool = False) -> Floats:
        """Text embeddings of what `read_text` gave, in one run of the graph; see `encode_texts`."""
        if pad_to_batch:
            self.require_padding()
        graph = self._graphs["text"]
        if not reads:  # a recurrent layer of ONNX Runtime ends the process
            return np.empty((0, *(length or 0 for length in graph.outputs[0].shape[1:])), np.float32)
        ids, lengths = self._reader().batch(reads)
        if pad_to_batch:
            lengths = np.full_like(lengths, ids.shape[1])
        feeds = {"tokens": ids, "lengths": lengths}
        return graph.run({tensor.name: feeds[tensor.name] for tensor in graph.inputs})["text"]

    def begin(self, text: Floats) -> Begun:
        """What `compose` does before it needs references, for whoever has the texts sooner.

        Args:
            text: float32 (Q, ...) from `encode_texts`.

        Returns:
            What `compose` takes in place of them.

        Raises:
            UsageError: they have another shape, or the engine is closed.
            DeviceError: the device failed.
        """
        graph = self._graphs["compose"]
        if not isinstance(graph, ComposeGraph):
            return Begun(text)
        for tensor in graph.inputs:
            if tensor.name == "text":
                check_feed("text", text, tensor)
        return graph.begin(text)

    def compose(self, reference: Floats | None, text: Floats | Begun | None) -> QueryTerms:
        """Query terms of reference and text embeddings.

        Args:
            reference: float32 (Q, ...) from `encode_references`, or gallery rows where
                `row_is_reference`; may be None unless `needs_reference`.
            text: float32 (Q, ...) from `encode_texts`, or what `begin` made of them; may be None unless
                `needs_text`.

        Raises:
            UsageError: one that is needed is missing or has another shape, their lengths differ, or the
                engine is closed.
            ScoringError: the graph's result is not finite.
            DeviceError: the device failed.
        """
        graph = self._graphs["compose"]
        begun = text if isinstance(text, Begun) else None
        given = {"reference": reference, "text": text if begun is None else begun.text}
        feeds: dict[str, Array] = {}
        for tensor in graph.inputs:
            value = given[tensor.name]
            if value is None:
                raise UsageError(
                    f"the system {shown(self.manifest.system)} needs a {tensor.name} for a query"
                )
            try:
                feeds[tensor.name] = np.ascontiguousarray(value, np.float32)
            except Exception as error:  # what arrays and tensors of others raise
                raise UsageError(f"{tensor.name} is {shown(value)}; expected float32 (Q, ...)") from error
        if len({value.shape[:1] for value in feeds.values()}) != 1:
            raise UsageError(
                f"{len(feeds['reference']):,} references for {len(feeds['text']):,} texts; "
                "expected one for each"
            )
        for tensor in graph.inputs:
            check_feed(tensor.name, feeds[tensor.name], tensor)
        if begun is not None and isinstance(graph, ComposeGraph):
            outputs = graph.finish(feeds, begun)
        else:
            outputs = graph.run(feeds)
        return QueryTerms(outputs["numerators"], outputs.get("weights"), self.manifest.terms)

    def prepare_image(
        self, image: ImageLike | PreparedImage, opened: Callable[[], object] | None = None
    ) -> PreparedImage:
        """Do now, in this thread, what a query would do with an image before the encoder has it.

        Args:
            image: see `encode_images`.
            opened: see `prepare`.

        Returns:
            What queries and encodings of this engine take in place of the image.

        Raises:
            ImageError: the image cannot be read.
        """
        return PreparedImage(self.prepare(image, opened), self.manifest.image)

    def prepare(self, image: ImageLike | PreparedImage, opened: Callable[[], object] | None = None) -> Array:
        """One image as the encoders read it, without a batch axis.

        Args:
            image: see `encode_images`.
            opened: called, once or more, when the image is open: what follows is native code for the most
                part, beside which other threads have Python to themselves.

        Returns:
            uint8 (H, W, 3), or float32 (F,) for a bundle on features.

        Raises:
            ImageError: the image cannot be read.
        """
        return _prepare(contents(image), self.manifest.image, opened)

    def warm_up(self) -> Samples:
        """Run every graph once, so that later calls find kernels loaded and buffers taken.

        Returns:
            The inputs and embeddings of the run; random ones, of no meaning.

        Raises:
            UsageError: the engine is closed.
            DeviceError: the device failed.
        """
        made: dict[str, Array] = {}
        for name, graph in self._graphs.items():
            if name == "text":
                made["text"] = self.encode_read([self._reader().sample(SAMPLE_TOKENS)])
            elif name != "compose":
                feeds = sample_feeds(graph.inputs, 1, SAMPLE_TOKENS)
                made.update(feeds)
                made.update(graph.run(feeds))
                if isinstance(graph, OneOrMany):
                    graph.open_both().run(sample_feeds(graph.inputs, 2, SAMPLE_TOKENS))
        reference = made.get("reference", made["embedding"])
        text = made.get("text")
        needed = reference if self.needs_reference else None
        self.compose(needed, text)
        if text is not None:
            for _ in range(2):  # the second time by the parts of compose
                self.compose(needed, self.begin(text))
        return Samples(made["image"], reference, text)

    def chains(self, scorer: Scorer) -> Chains | None:
        """What answers single queries in one launch, None where graphs and scorer do not share a GPU."""
        opened = self._here()
        return opened.backend.chains(opened.graphs, scorer, self.manifest.terms)

    # ---- inside

    @property
    def _graphs(self) -> dict[str, Graph]:
        return self._here().graphs

    def _here(self) -> OpenedGraphs:
        """Backend and graphs of this process."""
        if self._closed:
            raise UsageError(f"this engine of {self.path} is closed; open the bundle again")
        return self._opened.get()

    def _text_reader(self) -> TextReader | None:
        spec = self.manifest.text
        if spec is None:
            return None
        stated = self.manifest.provenance.get("vocabulary")
        words = stated.get("known") if isinstance(stated, dict) else None
        return TextReader(self._bundle.tokenizer(), spec, self.manifest.provenance.get("domain"), words)

    def _reader(self) -> TextReader:
        if self._texts is None:
            raise UsageError(f"the system {shown(self.manifest.system)} of {self.path} reads no text")
        return self._texts

    def _numbered_text(self, number: int, text: Text, together: Together) -> ReadText:
        try:
            return self._reader().read_one(text, together)
        except TextError as error:
            raise TextError(f"text {number}: {error}") from error

    def _encode(
        self,
        name: str,
        output: str,
        images: Iterable[ImageLike],
        batch_size: int,
        progress: bool,
        errors: OnError,
    ) -> Floats | Encoded:
        size = checked_count("batch_size", batch_size)
        checked_word("errors", errors, ("raise", "return"))
        images = checked_images(images, isinstance(self.manifest.image, FeatureInput))
        total = len(images) if isinstance(images, (Sequence, np.ndarray)) else None
        bar = checked_flag("progress", progress)
        batches = self._preparation.batches(images, size)
        shown_batches = progress_bar(batches, total, "encoding", "image", bar, size)
        found = encode_batches(self._graphs[name], output, shown_batches, errors)
        return found if errors == "return" else found.rows


def _prepare(
    image: ImageLike | PreparedImage, spec: Any, opened: Callable[[], object] | None = None
) -> Array:
    if not isinstance(image, PreparedImage):
        return preprocess(image, spec, opened)
    array = image.array_for(spec)
    if opened is not None:
        opened()
    return array


def _reopened(path: str, manifest: str, choices: tuple[Any, ...]) -> Engine:
    """What an engine becomes in pickle: the same bundle, opened again."""
    engine = Engine(path, *choices)
    if engine._bundle.manifest.to_json() != manifest:
        engine.close()
        raise BundleError(f"{path} is another bundle than the one that was pickled; pickle the Engine again")
    return engine
