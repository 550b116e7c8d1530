"""What is fuzzed of pickled objects: pickles, archives, checkpoints, data sets."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.foreign import check_pickle
from tests.fuzzing.mutations import mutate, mutate_json, weird
from tests.fuzzing.target import Target

_OPCODES: tuple[bytes, ...] = (
    *(bytes((code,)) for code in b"(.012N\x88\x89]})\x8fldt\x85\x86\x87aesu\x90\x91Rb\x81\x94Q"),
    b"K\x07", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x1f", b"G" + b"\x40" * 8,
    b"X\x01\0\0\0a", b"\x8c\x01b", b"q\0", b"q\x01", b"h\0", b"h\x01", b"r" + struct.pack("<I", 1 << 28),
    b"\x8b" + struct.pack("<I", 1 << 20), b"C\x01a",
    b"ccollections\nOrderedDict\n", b"c__main__\nVocabulary\n", b"ctorch\nFloatStorage\n", b"c__torch__\nM\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cos\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\nset\n",
)  # fmt: skip


def hostile_pickle(rng: random.Random) -> bytes:
    """A pickle of opcodes in some order, with one of the known bombs in it now and then."""
    parts = [b"\x80\x04"]
    for _ in range(rng.choice((3, 10, 40))):
        kind = rng.randrange(30)
        if kind == 0:
            parts.append(b")" + b"\x85" * rng.choice((10, 5000)))
        elif kind == 1:
            keys = b"".join(
                b"\x8a\x0a" + (n * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for n in range(3000)
            )
            parts.append(b"}(" + keys + b"u")
        elif kind == 2:
            parts.append(b"(" + b"N" * rng.choice((10, 100_000)) + rng.choice((b"t", b"l", b"1")))
        elif kind == 3:
            parts.append(b"\x8b" + struct.pack("<I", 5000) + b"\x7f" * 5000)
        else:
            parts.append(rng.choice(_OPCODES))
    return b"".join(parts) + b"."


class Pickles(Target):
    """Pickles, checked and then read by each unpickler that takes them from strangers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        words = {"word2idx": {f"w{n}": n for n in range(50)}, "idx2word": {n: f"w{n}" for n in range(50)}}
        self._seeds = [pickle.dumps(words, protocol) for protocol in range(5)]
        self._seeds.append(pickle.dumps([np.arange(6.0).reshape(2, 3), np.float32(2), ["a"], {"b": (1, 2)}]))

    def feed(self, rng: random.Random) -> str | None:
        from cir_eval.datasets.plain_pickle import load_plain
        from cir_export.checkpoints.vocabulary import load_vocabulary

        data = (
            hostile_pickle(rng) if rng.random() < 0.7 else mutate(rng, rng.choice(self._seeds), self._seeds)
        )
        if rng.random() < 0.5:
            path = self.folder / "x.pkl"
            path.write_bytes(data)
            load_vocabulary(path)
            return None
        try:
            check_pickle(io.BytesIO(data))
        except ValueError:
            return "ValueError"
        try:
            load_plain(io.BytesIO(data))
        except (MemoryError, RecursionError):
            raise
        except Exception as error:  # its callers answer any with an error of theirs
            return type(error).__name__
        return None


class Archives(Target):
    """TorchScript archives and torch.save's, put together by hand."""

    def feed(self, rng: random.Random) -> None:
        from cir_export.checkpoints import load_trained
        from cir_export.checkpoints.files import read_checkpoint_file

        stream = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
            warnings.simplefilter("ignore")  # names that are there twice
            script = rng.random() < 0.7
            if script:
                archive.writestr("m/code/x.py", "pass")
            archive.writestr("m/data.pkl", self._pickle(rng))
            if rng.random() < 0.8:
                archive.writestr("m/data/0", bytes(400))
            for _ in range(rng.choice((0, 0, 0, 1, 50))):
                name = rng.choice(("0", "1", "x", "../y"))
                kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
                archive.writestr(f"m/data/{name}", bytes(rng.choice((0, 4, 400, 100_000))), kind)
            archive.writestr("m/version", "3\n")
            archive.writestr("m/byteorder", "little")
        data = stream.getvalue()
        if rng.random() < 0.3:
            data = mutate(rng, data, [data])
        path = self.folder / "x.pt"
        path.write_bytes(data)
        if rng.random() < 0.7:
            read_checkpoint_file(path)
        else:
            load_trained(path)

    def _pickle(self, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return hostile_pickle(rng)
        module = b"c__torch__\nM\n)\x81}("
        entries = b"".join(
            b"X\x02\0\0\0w%d" % (n % 10) + (self._tensor(rng) if rng.random() < 0.9 else module + b"ub")
            for n in range(rng.choice((1, 3, 200)))
        )
        if rng.random() < 0.5:
            return b"\x80\x04" + module + entries + b"ub."
        deep = b"".join(b"c__torch__\nM\n)\x81}X\x01\0\0\0a" for _ in range(3000)) + b"N" + b"sb" * 3000
        if rng.random() < 0.1:
            return b"\x80\x04" + deep + b"."
        return (
            b"\x80\x04"
            + (module if rng.random() < 0.5 else b"}(")
            + entries
            + (b"ub." if rng.random() < 0.5 else b"u.")
        )

    def _tensor(self, rng: random.Random) -> bytes:
        def number(value: int) -> bytes:
            return b"J" + struct.pack("<i", value)

        count, size = rng.choice((*[100] * 9, 0, 10**9)), rng.choice((1, 10, 10, 10, 100, 25_000, 10**9))
        storage = (
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + rng.choice((*[b"0"] * 9, b"1"))
            + b"X\x03\0\0\0cpu" + number(count) + b"tQ"
        )  # fmt: skip
        axes = rng.choice((1, 1, 1, 2))
        shape = b"(" + number(size) * axes + b"t"
        stride = b"(" + number(rng.choice((1, 1, 1, 0, -1, 10**9))) * axes + b"t"
        hooks = rng.choice((b"}", b"ccollections\nOrderedDict\n)R"))
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + number(rng.choice((*[0] * 9, 5, -1)))
            + shape
            + stride
            + b"\x89"
            + hooks
            + b"tR"
        )


class Checkpoints(Target):
    """Sound model files with hostile values, tensors and settings."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch

        from cir_export.model_file import TrainedModel, save_model
        from cir_export.models import build_model
        from cir_export.preprocessing import feature_input, word_text
        from cir_export.tokenization import SPECIALS, build_tokenizer

        words = {word: n for n, word in enumerate((*SPECIALS, "red", "blue"))}
        config = {
            "system": "artemis",
            "embedding_dim": 8,
            "image": {"features": 12, "normalize": False},
            "text": {"vocabulary_size": len(words), "word_dim": 4, "encoder": "lstm", "hidden": 6},
        }
        model = TrainedModel(build_model(config), build_tokenizer(words), feature_input(12), word_text())
        save_model(folder / "seed.pt", model)
        self._bytes = (folder / "seed.pt").read_bytes()
        self._content = torch.load(folder / "seed.pt", weights_only=True)

    def feed(self, rng: random.Random) -> str | None:
        import torch

        from cir_export.checkpoints import load_trained

        path = self.folder / "x.pt"
        if rng.random() < 0.3:
            path.write_bytes(mutate(rng, self._bytes, [self._bytes]))
        else:
            content = dict(self._content)
            part = rng.choice(("config", "image", "text", "weights", "tokenizer", "provenance"))
            if part == "weights":
                weights = dict(content[part])
                name = rng.choice(sorted(weights))
                weights[name] = self._tensor(rng, weights[name])
                content[part] = weights
            elif part == "tokenizer":
                content[part] = json.dumps(mutate_json(rng, json.loads(content[part])))
            else:
                content[part] = mutate_json(rng, content[part])
            try:
                torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.8)
            except RecursionError:
                return "nested too deep to be written"
        load_trained(path)
        return None

    def _tensor(self, rng: random.Random, value: Any) -> Any:
        import torch

        return rng.choice(
            (
                value.expand(1000, *value.shape),
                torch.zeros(1).expand(10**6, 10**6),
                torch.zeros(0),
                value.to(torch.float64),
                value.to_sparse(),
                torch.zeros(value.shape, device="meta"),
                value * float("nan"),
                weird(rng),
            )
        )


class Datasets(Target):
    """Files of published data sets: JSON, captions, label files, pickles."""

    def feed(self, rng: random.Random) -> None:
        from cir_eval.datasets.files import json_list, json_object, lines, text_field

        path = self.folder / "x.json"
        seed = json.dumps([{"candidate": "a", "captions": ["is red", "is long"], "target": "b"}] * 3).encode()
        kind = rng.randrange(4)
        if kind == 0:
            data = mutate(rng, seed, [seed])
        elif kind == 1:
            data = json.dumps(mutate_json(rng, json.loads(seed))).encode()
        elif kind == 2:
            data = rng.choice((b"[", b'{"a":', b"[[", b'{"captions": [')) * rng.choice((10, 100_000))
        else:
            data = b"[" + b"9" * rng.choice((10, 10_000, 500_000)) + b"]"
        path.write_bytes(data)
        if rng.random() < 0.2:
            for line in lines(path, "captions"):
                assert line
        elif rng.random() < 0.5:
            for entry in json_list(path, "captions"):
                text_field(entry, "candidate", path)
        else:
            json_object(path, "captions")
