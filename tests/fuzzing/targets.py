"""What is fuzzed: for each kind of input, a variation of it and the code that reads it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import CenterCrop, PixelInput, Resize, ToRgb
from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.gallery.filters.filters import parse
from cir_infer.inputs.images import load_image
from cir_infer.inputs.preprocess import preprocess
from tests import bundles
from tests.fuzzing.arguments import Arguments, ScorerArguments
from tests.fuzzing.computing import Graphs, Tokenizers
from tests.fuzzing.mutations import mutate, mutate_json, weird
from tests.fuzzing.objects import Archives, Checkpoints, Datasets, Pickles
from tests.fuzzing.pictures import Metadata
from tests.fuzzing.queries import Queries
from tests.fuzzing.sources import Shards, Tables, Trees
from tests.fuzzing.target import Target
from tests.gallery.support import seal
from tests.indexing.support import picture


def sample_gallery(path: Path) -> None:
    """A closed gallery with every feature of the format in it."""
    rng = np.random.default_rng(0)
    with Gallery.create(path, dimension=8) as gallery:
        for part in range(4):
            gallery.add_vectors(
                ids=[f"{part}-{n}" for n in range(6)],
                vectors=rng.normal(size=(6, 8)),
                metadata=[{"price": n, "tags": ["a", f"t{n}"], "size": {"h": n / 2}} for n in range(6)],
                sources=[f"/images/{n}.jpg" for n in range(6)],
            )
            gallery.remove([f"{part}-2"])
            if part == 2:
                gallery.compact()


class Expressions(Target):
    """Filters as text and as dictionaries, evaluated."""

    TEXTS = (
        "category = dress and price < 50",
        'brand in (acme, "Tom & Co") or not (colour prefix "light ")',
        "size.h >= 3.5 and note is null and tags != 'last season'",
        "tags not in (a, 1, true) and price is not null",
        "taken >= 2024-05-17T09:30:00.25+02:00 and at < 10:00 or taken prefix 2024-05",
        "price in (-9223372036854775808, +1e19, 007, 0.1, 1e400) or not (price > 5 and not price <= -2.5e-3)",
    )
    DICTIONARIES = (
        {"category": "dress", "price": {"<": 50, ">=": 10}, "tags": ["a", "b"]},
        {"$or": [{"tags": None}, {"$not": {"price": {"in": [1, 2]}}}], "size.h": {"null": False}},
        {"$and": [{"tags": {"prefix": "t"}}, {"price": {"!=": 3}}]},
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sample_gallery(folder / "g")
        self._snapshot = Gallery.open(folder / "g").snapshot()
        self._seeds = [text.encode() for text in self.TEXTS]

    def feed(self, rng: random.Random) -> None:
        where: Any
        if rng.random() < 0.7:
            where = mutate(rng, rng.choice(self._seeds), self._seeds).decode("utf-8", "replace")
        else:
            where = mutate_json(rng, rng.choice(self.DICTIONARIES))
        parse(where)
        assert 0 <= self._snapshot.matching(where) <= self._snapshot.count


class Images(Target):
    """Encoded images of every format, prepared for an encoder."""

    SPEC = PixelInput(32, 32, (ToRgb(), Resize(40), CenterCrop(32)), exif_orientation=True)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seeds = []
        for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"):
            for mode in ("RGB", "L", "P", "RGBA", "1", "I;16"):
                stream = io.BytesIO()
                # Not every format takes every mode; those it does not are no seeds.
                with contextlib.suppress(Exception):
                    picture(1, (24, 18)).convert(mode).save(stream, name)
                    self._seeds.append(stream.getvalue())
        tagged = Image.Exif()
        tagged[0x0112] = 6
        stream = io.BytesIO()
        picture(2).save(stream, "JPEG", exif=tagged)
        self._seeds.append(stream.getvalue())

    def feed(self, rng: random.Random) -> None:
        data = mutate(rng, rng.choice(self._seeds), self._seeds)
        if rng.random() < 0.5:
            load_image(data)
        else:
            assert preprocess(data, self.SPEC).shape == (32, 32, 3)


class Bundles(Target):
    """Bundles: damaged archives, and whole ones with hostile manifests."""

    SYSTEMS = ("artemis", "cosine", "separate", "features", "text-only", "image-only")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seeds = []
        for system in self.SYSTEMS:
            path = bundles.write_tiny_bundle(folder / "seed.cir", system)
            self._seeds.append(path.read_bytes())

    def feed(self, rng: random.Random) -> None:
        seed = rng.choice(self._seeds)
        data = mutate(rng, seed, self._seeds) if rng.random() < 0.5 else self._rewritten(rng, seed)
        path = self.folder / "x.cir"
        path.write_bytes(data)
        bundle = Bundle(path)
        bundle.verify()
        for name in bundle.manifest.graphs:
            bundle.graph(name)

    def _rewritten(self, rng: random.Random, seed: bytes) -> bytes:
        """A sound archive, whose members are hostile; most often with the right checksums."""
        with zipfile.ZipFile(io.BytesIO(seed)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(members["manifest.json"])
        if rng.random() < 0.7:
            manifest = mutate_json(rng, manifest)
        text = json.dumps(manifest).encode()
        members["manifest.json"] = mutate(rng, text, [text]) if rng.random() < 0.2 else text
        stream = io.BytesIO()
        kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name, member in members.items():
                archive.writestr(rng.choice(("../", "/")) + name if rng.random() < 0.02 else name, member)
            if rng.random() < 0.05:  # a bomb: a thousand bytes that become a million
                archive.writestr("bomb", bytes(1_000_000), zipfile.ZIP_DEFLATED)
        return stream.getvalue()


class Models(Target):
    """Sound bundles with hostile tokenizers and graphs, opened as an engine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._members = bundles.members_of("artemis")
        self._seeds = list(self._members.values())

    def feed(self, rng: random.Random) -> None:
        members = dict(self._members)
        name = rng.choice(sorted(members))
        if name == "tokenizer.json" and rng.random() < 0.7:
            members[name] = json.dumps(mutate_json(rng, json.loads(members[name]))).encode()
        else:
            members[name] = mutate(rng, members[name], self._seeds)
        path = self.folder / "x.cir"
        path.unlink(missing_ok=True)
        bundles.write_bundle(path, bundles.manifest_of("artemis"), members)
        engine = Engine(path, device="cpu", threads=1)
        image = np.zeros((8, 8, 3), np.uint8)
        engine.compose(engine.encode_images([image]), engine.encode_texts(["is red and longer"]))


class Galleries(Target):
    """Gallery folders: damaged files, hostile values in a sound catalogue, links, pipes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sample_gallery(folder / "seed")
        with sqlite3.connect(folder / "seed" / "catalogue.sqlite") as connection:
            tables = [
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            self._columns = [
                (table, column[1])
                for table in tables
                for column in connection.execute(f"PRAGMA table_info({table})")
            ]
        connection.close()

    def feed(self, rng: random.Random) -> None:
        path = self.folder / "g"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder / "seed", path)
        rows = sorted((path / "rows").iterdir())
        kind = rng.randrange(10)
        if kind < 3:
            self._damage(rng, path / "catalogue.sqlite")
        elif kind < 6:
            self._falsify(rng, path / "catalogue.sqlite")
        elif kind < 8:
            self._damage(rng, rng.choice(rows))
        elif kind == 8:
            self._rewrite_header(rng, rng.choice(rows))
        else:
            self._replace(
                rng, rng.choice([*rows, path / "catalogue.sqlite", path / "readers", path / "rows"])
            )
        with Gallery.open(path, read_only=rng.random() < 0.5) as gallery:
            snapshot = gallery.snapshot()
            live = snapshot.live_rows()
            snapshot.rows.take(live)
            assert len(snapshot.ids(live)) == snapshot.count
            snapshot.metadata(live)
            snapshot.sources(live)
            snapshot.row("1-1")
            snapshot.where({"price": {"<": 3}, "tags": "a"})
            sound = gallery.verify().ok
            if sound and rng.random() < 0.5:
                gallery.export(self.folder / "out.safetensors")
                (self.folder / "out.safetensors").unlink()
            gallery.compact()
            some = gallery.ids[:3]
            gallery.set_metadata(some, [{"told": item} for item in some], merge=True)
            gallery.add_vectors(ids=["new"], vectors=np.ones((1, snapshot.dimension)))
            assert "new" in gallery.ids

    def _damage(self, rng: random.Random, path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(mutate(rng, data, [data]))

    def _falsify(self, rng: random.Random, path: Path) -> None:
        connection = sqlite3.connect(path)
        with contextlib.suppress(sqlite3.Error, UnicodeEncodeError, OverflowError), connection:
            for _ in range(rng.choice((1, 1, 3))):
                table, column = rng.choice(self._columns)
                value = weird(rng)
                if isinstance(value, (list, dict)):
                    value = rng.randbytes(rng.choice((0, 1, 8, 5000)))
                where = "1" if rng.random() < 0.3 else f"rowid = {rng.randrange(1, 30)}"
                if table in ("header", "attributes"):  # these have no rowid
                    where = (
                        "1" if rng.random() < 0.2 else f"{column} = (SELECT {column} FROM {table} LIMIT 1)"
                    )
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,))
            if rng.random() < 0.1:
                connection.execute("CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END")
            if rng.random() < 0.1:
                connection.execute("DROP TABLE tombstones")
        connection.close()
        if rng.random() < 0.8:  # checksums keep nobody out who knows how they are made
            with contextlib.suppress(sqlite3.Error, UnicodeError, ValueError):
                seal(path.parent)

    def _rewrite_header(self, rng: random.Random, path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        text = json.dumps(mutate_json(rng, header)).encode()
        text = text[:length].ljust(length)
        path.write_bytes(data[:8] + text + data[8 + length :])

    def _replace(self, rng: random.Random, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        kind = rng.randrange(5)
        if kind == 0:
            path.symlink_to("/etc/passwd")
        elif kind == 1:
            path.mkdir()
        elif kind == 2:
            os.mkfifo(path)
        elif kind == 3:
            path.symlink_to(path)


class Imports(Target):
    """Rows of others: safetensors files and clip-retrieval folders."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sample_gallery(folder / "g")
        with Gallery.open(folder / "g") as gallery:
            gallery.export(folder / "seed.safetensors")
            gallery.export(folder / "seed")
        self._file = (folder / "seed.safetensors").read_bytes()

    def feed(self, rng: random.Random) -> None:
        target = self.folder / f"new{rng.random()}"
        try:
            if rng.random() < 0.7:
                source = self.folder / "x.safetensors"
                source.write_bytes(self._hostile(rng))
            else:
                source = self.folder / "x"
                shutil.rmtree(source, ignore_errors=True)
                shutil.copytree(self.folder / "seed", source)
                path = rng.choice([path for path in sorted(source.rglob("*")) if path.is_file()])
                data = path.read_bytes()
                path.write_bytes(mutate(rng, data, [data]))
            Gallery.import_from(target, source, unknown_fingerprint=True).close()
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _hostile(self, rng: random.Random) -> bytes:
        data = self._file
        if rng.random() < 0.5:
            return mutate(rng, data, [data])
        length = struct.unpack("<Q", data[:8])[0]
        text = json.dumps(mutate_json(rng, json.loads(data[8 : 8 + length]))).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]


TARGETS: dict[str, type[Target]] = {
    "expressions": Expressions,
    "images": Images,
    "bundles": Bundles,
    "models": Models,
    "galleries": Galleries,
    "tables": Tables,
    "shards": Shards,
    "trees": Trees,
    "imports": Imports,
    "arguments": Arguments,
    "queries": Queries,
    "scorers": ScorerArguments,
    "metadata": Metadata,
    "tokenizers": Tokenizers,
    "graphs": Graphs,
    "pickles": Pickles,
    "archives": Archives,
    "checkpoints": Checkpoints,
    "datasets": Datasets,
}


def digest(text: str) -> int:
    """A seed of a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
