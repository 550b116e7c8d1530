"""Targets for what cir-index reads: tables, shards, and folders that change between two runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.engine import Engine
from cir_infer.errors import CirError, DatasetError
from cir_infer.gallery import Gallery
from cir_infer.indexing.items import Broken, unfit
from cir_infer.indexing.pruning import PruneLimit
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_source, open_sources
from cir_infer.inputs.locations import Location
from tests import bundles
from tests.fuzzing.mutations import mutate, mutate_json
from tests.fuzzing.target import Target
from tests.indexing.support import folder_of, png, shard_of

PLAIN = tuple(f"{letter}{number}.png" for letter in "abc" for number in range(4))
ODD = (
    *(
        ".hidden.png",
        "._a0.png",
        "Thumbs.db",
        "x.heic",
        "readme",
        "photo",
        "a b.jpeg",
        "UPPER.PNG",
        "Holiday [2020]",
    ),
    *(
        "{x,y}",
        "*.png",
        "?",
        "a=b.png",
        "#1+2",
        "x.tar#10+20",
        "new\nline.png",
        "\x1b[2J.png",
        "é.png",
        "💥.png",
    ),
    *("x" * 255, "y" * 251 + ".png", "caf\udce9.png", "\udcff", "nested.tar", "list.csv", "sub.png"),
)


class Tables(Target):
    """CSV, JSONL and parquet manifests, with paths and with images in their cells."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import pyarrow
        from pyarrow import parquet

        folder_of(folder / "f", 4)
        self._rows = [{"id": f"{n}", "image": f"f/{n}.png", "price": n, "tags": "a,b"} for n in range(4)]
        self._seeds = [
            (".jsonl", "".join(json.dumps(row) + "\n" for row in self._rows).encode()),
            (".csv", b'sep=;\r\n;image;note\r\n0;f/0.png;"a;""b""\r\nc"\r\n1;f/sub/1.png;x\r\n'),
        ]
        for delimiter in ",;\t|":
            lines = (f'{r["id"]},{r["image"]},{r["price"]},"a,b"\n' for r in self._rows)
            text = "id,image,price,tags\n" + "".join(lines)
            self._seeds.append((".csv", text.replace(",", delimiter).encode()))
        cells = [{"bytes": png(n), "path": f"{n}.png"} for n in range(6)]
        tables = (
            pyarrow.Table.from_pylist(self._rows),
            pyarrow.table({"image": cells, "label": list(range(6))}),
            pyarrow.table({"jpg": [png(n) for n in range(6)]}),
        )
        for number, table in enumerate(tables):
            for compression in ("none", "snappy"):
                path = folder / f"seed{number}{compression}.parquet"
                parquet.write_table(table, path, row_group_size=3, compression=compression)
                self._seeds.append((".parquet", path.read_bytes()))

    def feed(self, rng: random.Random) -> None:
        ending, seed = rng.choice(self._seeds)
        data = mutate(rng, seed, [data for _, data in self._seeds])
        if ending == ".jsonl" and rng.random() < 0.5:
            data = b"".join(json.dumps(mutate_json(rng, row)).encode() + b"\n" for row in self._rows)
        read(self.folder / f"x{ending}", data)


class Shards(Target):
    """Tar files of every format, with side files in any order, cut and altered."""

    NAMES = (
        "0.png",
        "0.json",
        "0.txt",
        "1.a.png",
        "1.json",
        "./._0.png",
        "2.b.c.json",
        "photo",
        "d/" * 40 + "x.png",
    )

    def feed(self, rng: random.Random) -> None:
        stream = io.BytesIO()
        formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        with tarfile.open(fileobj=stream, mode="w", format=rng.choice(formats)) as archive:
            for name in rng.sample(self.NAMES, rng.randrange(1, 8)):
                member = tarfile.TarInfo(name if rng.random() < 0.8 else name + "x" * 120)
                data = (
                    json.dumps(mutate_json(rng, {"a": 1, "b": ["c"]})).encode() if "json" in name else png(1)
                )
                member.size = len(data)
                if rng.random() < 0.1:
                    member.type = rng.choice((tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                    member.size, member.linkname = 0, "0.png"
                with contextlib.suppress(ValueError):  # not every format takes every name
                    archive.addfile(member, io.BytesIO(data))
        data = stream.getvalue()
        others = [data, shard_of(self.folder / "seed.tar", 2).read_bytes()]
        if rng.random() < 0.2:
            data += others[1]
        read(self.folder / "x.tar", mutate(rng, data, others) if rng.random() < 0.9 else data)


def read(path: Path, data: bytes) -> None:
    """Read a manifest or shard twice: the answers are alike, and every place can be read or says why not."""
    path.write_bytes(data)
    with contextlib.suppress(DatasetError):
        open_source(str(path)).count()
    answers: list[tuple[list[str], str]] = []
    for _ in range(2):
        source, seen, said = open_source(str(path)), [], ""
        try:
            for number, entry in enumerate(source.items()):
                assert number < 20_000
                seen.append(repr(entry))
                if isinstance(entry, Broken):
                    assert len(entry.reason) < 10_000
                elif unfit(entry) is None and entry.location.path.startswith(str(path.parent)):
                    with contextlib.suppress(CirError):
                        entry.location.read()
        except DatasetError as error:
            said = str(error)
        answers.append((seen, said))
    assert answers[0] == answers[1]
    if answers[0][1]:
        raise DatasetError(answers[0][1])


class Trees(Target):
    """Folders full of odd entries, indexed, changed and indexed again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        bundles.write_tiny_bundle(folder / "tiny.cir")
        self._engine = Engine(folder / "tiny.cir")
        self._root = folder / "tree"

    def feed(self, rng: random.Random) -> None:
        for path in (self._root, self.folder / "g"):
            subprocess.run(["rm", "-rf", "--", str(path)], check=True)
        self._root.mkdir()
        with Gallery.create(self.folder / "g", self._engine) as gallery:
            for _ in range(rng.randrange(1, 4)):
                self._change(rng)
                arguments = self._arguments(rng)
                before = set(gallery.ids)
                limit = rng.choice((PruneLimit(), PruneLimit(), PruneLimit(number=2), PruneLimit(share=0.5)))
                report = index(
                    gallery,
                    self._engine,
                    open_sources(arguments, prefix=rng.choice((None, None, "p"))),
                    workers=0,
                    prune=rng.random() < 0.7,
                    prune_limit=limit,
                    replace_taken=rng.random() < 0.2,
                )
                self._check(rng, gallery, before, report, limit)
            assert gallery.verify().ok
        if not report.ok:
            raise DatasetError("the last run could not do everything")

    def _check(
        self, rng: random.Random, gallery: Gallery, before: set[str], report: Any, limit: PruneLimit
    ) -> None:
        snapshot = gallery.snapshot()
        rows = snapshot.live_rows()
        places = dict(zip(snapshot.ids(rows), snapshot.sources(rows), strict=True))
        gone = before - set(places)
        assert not gone or len(gone) < len(before) or limit.insists or report.moved
        for name in rng.sample(sorted(places), min(2, len(places))):
            place = places[name]
            # An item that no source of this run showed may be older than its file.
            if name not in before and place is not None and os.path.isfile(Location.parse(place).path):  # noqa: PTH113
                row, at = self._engine.encode_images([place])[0], snapshot.row(name)
                assert at is not None
                np.testing.assert_allclose(snapshot.vector(at), row, atol=2e-3)

    def _arguments(self, rng: random.Random) -> list[str]:
        root = str(self._root)
        entries = [path.path for path in os.scandir(root)]
        choices = [
            root,
            f"{root}/../tree/",
            f"n={root}",
            f"{root}/**/*.png",
            f"{root}/*",
            f"{root}/**",
            f"{root}/{{a,b}}*.png",
            f"{root}/[ab]?.*",
            *entries,
        ]
        return [rng.choice(choices[:8]), *rng.sample(choices, rng.randrange(0, min(4, len(choices))))]

    def _change(self, rng: random.Random) -> None:
        for _ in range(rng.choice((3, 8, 20))):
            folders = [Path(folder) for folder, _, _ in os.walk(self._root)]
            path = rng.choice(folders) / rng.choice(PLAIN if rng.random() < 0.6 else ODD)
            with contextlib.suppress(OSError):
                self._put(rng, path, rng.choice(folders))

    def _put(self, rng: random.Random, path: Path, other: Path) -> None:
        kind = rng.randrange(13)
        if os.path.lexists(path) and kind not in (9, 10):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if kind < 5:
            path.write_bytes(png(rng.randrange(6)))
        elif kind == 5:
            path.write_bytes(rng.choice((b"", b"no image", png(1)[:60], b"\0\0\0\x18ftypheic")))
        elif kind == 6:
            path.mkdir()
        elif kind == 7:
            path.symlink_to(
                rng.choice((other, other / rng.choice(PLAIN), path, "nowhere", "x" * 300, "/dev/zero"))
            )
        elif kind == 8:
            os.mkfifo(path)
        elif kind == 9:
            path.rename(other / rng.choice(PLAIN))
        elif kind == 10:
            os.utime(path, ns=(1, rng.randrange(5)))
        elif kind == 11:
            shard_of(path.with_suffix(".tar"), 2)
        else:
            path.with_suffix(".csv").write_text(
                f"image,n\n{path.name},1\n{rng.choice(PLAIN)},2\n", errors="replace"
            )
