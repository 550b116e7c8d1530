"""The bundle file (.cir): a zip archive of stored members, described and sealed by its manifest.

Nothing in a bundle executes: JSON and ONNX graphs of standard operators, no pickle. Every size is
checked against the file before memory is taken, every member against its sha256 when it is read.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cir_infer.bundle.manifest import MANIFEST_NAME, TOKENIZER_NAME, FeatureInput, Manifest
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.bundle.model import ALIGNMENT, Model, map_file, model_of
from cir_infer.bundle.writing import Content, FilePart, chunks_of, data_begin, digest, write_archive
from cir_infer.console.progress import progress_bar, progress_of
from cir_infer.errors import BundleError, UsageError, lack, shown
from cir_infer.foreign import no_file, opened_archive
from cir_infer.processes.outputs import replacing

__all__ = ["Bundle", "write_bundle"]

MAX_MANIFEST_BYTES = 4 << 20
_MOST_DIRECTORY = 4 << 20


class Bundle:
    """A bundle on disk. Opening reads and validates the manifest and the archive's directory.

    Attributes:
        path: the file.
        manifest: its validated manifest.

    Raises:
        BundleError: the file is missing, not a bundle, cut short, altered, or of a newer format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        wrong = UsageError(f"bundle is {shown(path)}; expected the path of a bundle (.cir)")
        if not isinstance(path, (str, os.PathLike)):
            raise wrong
        try:
            name = str.__str__(os.fsdecode(path))  # also of a text enum, whose `str()` is its name
        except Exception as error:  # what an object of somebody's raises that is to say a path
            raise wrong from error
        # Read again later, by whoever has gone elsewhere since.
        self.path = Path(name)
        with suppress(OSError):
            self.path = self.path.absolute()
        with self._archive() as archive:
            names = [info.filename for info in archive.infolist()]
            if MANIFEST_NAME not in names:
                raise self._another(names)
            self.manifest = self._parse(
                self._read_stored(archive, archive.getinfo(MANIFEST_NAME), MAX_MANIFEST_BYTES)
            )
            expected = [MANIFEST_NAME, *self.manifest.members]
            if sorted(names) != sorted(expected):
                raise BundleError(
                    f"{self.path} holds {shown(sorted(names))} and its manifest lists "
                    f"{shown(sorted(expected))}; the bundle was altered, export the model again"
                )
            for name, member in self.manifest.members.items():
                self._check_stored(archive.getinfo(name), member.bytes)

    def read(self, name: str) -> bytes:
        """The content of one member, checked against its size and sha256.

        Raises:
            BundleError: no such member, or it is not what the manifest says.
        """
        member = self.manifest.members.get(name)
        if member is None:
            raise BundleError(
                f"{self.path} has no member {shown(name)}; it holds {shown(sorted(self.manifest.members))}"
            )
        part = self._part(name)
        try:
            with part.path.open("rb") as file:
                file.seek(part.begin)
                data = file.read(part.length)  # not by `zipfile`, whose CRC says less than the sha256
        except OSError as error:
            raise self._unread(name, error) from error
        if len(data) != member.bytes or hashlib.sha256(data).hexdigest() != member.sha256:
            raise self._altered(f"{name} does not have the sha256 that the manifest gives")
        return data

    def graph(self, name: str) -> Model:
        """The graph with its weights: "image", "reference", "text", "compose".

        "explain" is the image graph with what explanations add to it.

        Raises:
            UsageError: the bundle has no such graph.
            BundleError: it is not what the manifest says, no ONNX model, names a file of the machine, or
                takes more memory or work than `cir_infer.bundle.limits` allows.
        """
        from cir_infer.bundle.limits import check_graph
        from cir_infer.bundle.onnx_form import check_self_contained

        data = self._model(name)
        try:
            check_self_contained(data, self.manifest.weights is not None)
            model = self._with_weights(data)
            check_graph(model, *self.checked_for(name))
        except BundleError as error:
            raise BundleError(f"cannot load the {name} graph of {self.path}: {error}") from error
        return model

    def checked_for(self, name: str) -> tuple[dict[str, tuple[int | None, ...]], int | None]:
        """What else than a graph its checks depend on, as `cir_infer.bundle.limits.check_graph` takes it.

        Returns:
            Lengths of its inputs' axes by name, None for the batch; and of a text, at most so many tokens.
        """
        image, text = self.manifest.image, self.manifest.text
        shape = (image.size,) if isinstance(image, FeatureInput) else (image.height, image.width, 3)
        return (
            {"image": (None, *shape)} if name in ("image", "reference", "explain") else {},
            text.max_tokens if name == "text" and text is not None else None,
        )

    def _model(self, name: str) -> bytes:
        explain = self.manifest.explain
        if name == "explain" and explain is not None:
            from cir_infer.bundle.continuation import continued

            return continued(self.read(self.manifest.graphs["image"]), self.read(explain.file))
        if name not in self.manifest.graphs:
            raise UsageError(
                f"{self.path} has no graph {shown(name)}; it has {shown(sorted(self.manifest.graphs))}"
            )
        return self.read(self.manifest.graphs[name])

    def continuation(self) -> Model:
        """What explanations add to the image graph: no whole graph, and not checked as one.

        Raises:
            UsageError: the bundle explains nothing.
            BundleError: it is not what the manifest says.
        """
        explain = self.manifest.explain
        if explain is None:
            raise UsageError(f"{self.path} has no graph that explains")
        return self._with_weights(self.read(explain.file))

    def _with_weights(self, data: bytes) -> Model:
        name = self.manifest.weights
        if name is None:
            return Model(data)
        part = self._part(name)
        try:
            mapped = map_file(part.path, part.begin, part.length)
        except (OSError, ValueError) as error:
            raise self._unread(name, error) from error
        return model_of(data, mapped)

    def _part(self, name: str) -> FilePart:
        """Where a stored member lies in the file. Its content is not looked at."""
        member = self.manifest.members[name]
        with self._archive() as archive:
            info = self._info(archive, name)
            self._check_stored(info, member.bytes)
            try:
                begin = data_begin(self.path, info)
            except (OSError, ValueError) as error:
                raise self._unread(name, error) from error
        if name == self.manifest.weights and begin % ALIGNMENT:
            raise self._altered(f"{name}: it begins at {begin}, no multiple of {ALIGNMENT}")
        return FilePart(self.path, begin, member.bytes, member.sha256)

    def contents(self, names: Iterable[str] | None = None) -> dict[str, Content]:
        """Members for `write_bundle`, checked; the file of weights stays in this bundle until it is copied.

        Args:
            names: which; all by default.

        Raises:
            BundleError: no such member, or it is not what the manifest says.
        """
        wanted = self.manifest.members if names is None else names
        large = self.manifest.weights
        return {name: self._part(name) if name == large else self.read(name) for name in wanted}

    def tokenizer(self) -> bytes:
        """The `tokenizers` JSON."""
        return self.read(TOKENIZER_NAME)

    def verify(self) -> None:
        """Read every member and check its sha256.

        Raises:
            BundleError: a member is damaged.
        """
        for name, member in self.manifest.members.items():
            if name == self.manifest.weights:
                if self._part(name).digest() != member:
                    raise self._altered(f"{name} does not have the sha256 that the manifest gives")
            else:
                self.read(name)

    def _archive(self) -> zipfile.ZipFile:
        try:
            if not self.path.is_file():
                found = no_file(self.path)
                raise BundleError(f"{self.path} {found}; expected a bundle (.cir) as cir-export writes it")
            return opened_archive(self.path, _MOST_DIRECTORY)
        except BundleError:
            raise
        except OSError as error:
            raise BundleError(
                f"{self.path} cannot be read: {lack(error) or error.strerror or error}"
            ) from error
        except (
            Exception
        ) as error:  # zipfile answers damage with many types: BadZipFile, ValueError, struct.error
            if lacking := lack(error):
                raise BundleError(f"{self.path} cannot be read: {lacking}") from error
            raise BundleError(
                f"{self.path} is not a bundle (.cir): {shown(error)}; copy or export it again"
            ) from error

    def _another(self, names: list[str]) -> BundleError:
        """That this archive is of another kind, and what to do with it."""
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return BundleError(
                f"{self.path} is what torch.save wrote, and no bundle yet; "
                f"`cir-export {self.path.name} -o {self.path.stem}.cir` makes one of it"
            )
        return BundleError(f"{self.path} has no {MANIFEST_NAME}; it is not a bundle (.cir)")

    def _info(self, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        try:
            return archive.getinfo(name)
        except KeyError as error:
            raise self._altered(f"{name} is gone") from error

    def _parse(self, data: bytes) -> Manifest:
        try:
            return read_manifest(data)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from error

    def _check_stored(self, info: zipfile.ZipInfo, expected: int) -> None:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise self._altered(f"{info.filename} is compressed or encrypted and should be stored as it is")
        if info.file_size != expected or info.compress_size != expected:
            raise self._altered(f"{info.filename} has {info.file_size} bytes and should have {expected}")

    def _read_stored(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
        # A stored member cannot be longer than the file, so a forged size never costs memory.
        if info.file_size > min(limit, self.path.stat().st_size):
            raise self._altered(f"{info.filename} claims {info.file_size} bytes")
        self._check_stored(info, info.file_size)
        try:
            with archive.open(info) as member:
                return member.read(info.file_size)
        except Exception as error:  # as above, and a wrong CRC
            raise self._unread(shown(info.filename), error) from error

    def _unread(self, name: str, error: Exception) -> BundleError:
        lacking = lack(error)
        if lacking is None:
            return self._altered(f"{name}: {shown(error)}")
        return BundleError(f"{self.path} cannot be read: {lacking}")

    def _altered(self, what: str) -> BundleError:
        return BundleError(
            f"{self.path} was altered or damaged ({what}); copy it again or export the model again"
        )


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    members: Mapping[str, Content],
    progress: bool = False,
) -> Manifest:
    """Write a bundle atomically: the file appears whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        manifest: everything but `members`, which is computed here.
        members: content by name: the graphs and, for a system that reads text, tokenizer.json. A `FilePart`
            is copied without being read into memory.
        progress: say how far it is: a bar on a terminal, elsewhere log lines.

    Returns:
        The manifest as written, with sizes and digests.

    Raises:
        BundleError: the manifest does not describe these members, or is not valid; a part of a file is not
            what it should be.
        OSError: the file cannot be written.
    """
    ordered = dict(sorted(members.items()))
    sizes = progress_bar(ordered.items(), len(ordered), "checking", "member", progress)
    sealed = replace(manifest, members={name: digest(content) for name, content in sizes})
    text = sealed.to_json()
    sealed = read_manifest(text)
    whole = {MANIFEST_NAME: text.encode(), **ordered}
    with (
        replacing(Path(path)) as file,
        progress_of(chunks_of(whole), "writing", "part", progress) as written,
    ):
        write_archive(file, whole, written)
    return sealed
