"""What is fuzzed of what computes: tokenizers and graphs, put together from parts that their readers know."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.limits import OPERATORS, check_graph
from cir_infer.bundle.manifest import (
    TextInput,
)
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_form import check_self_contained
from cir_infer.errors import BundleError
from cir_infer.inputs.texts import TextReader
from tests import bundles
from tests.fuzzing.mutations import mutate, mutate_json
from tests.fuzzing.target import Target


class Tokenizers(Target):
    """Tokenizers put together from the library's parts; what is let through reads a long text."""

    PIECES = (
        "a",
        "b",
        "[ab]",
        "[^a]",
        r"\w",
        r"\s",
        r"\p{L}",
        "(",
        ")",
        "(?:",
        "(?=",
        "(?!",
        "|",
        "*",
        "+",
        "?",
        "{2,9}",
        "$",
        r"\b",
        "[",
        "]",
        "\\",
        ".",
    )
    TEXT = "is red and longer ﬃ 一二 1234 !? " * 3

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seed = json.loads(bundles.tokenizer_json())

    def feed(self, rng: random.Random) -> None:
        value = dict(self._seed)
        value["normalizer"] = self._sequence(rng, "normalizers", self._normalizer)
        value["pre_tokenizer"] = self._sequence(rng, "pretokenizers", self._splitter)
        if rng.random() < 0.3:
            value["model"] = self._model(rng)
        if rng.random() < 0.3:
            value = mutate_json(rng, value)
        reader = TextReader(json.dumps(value).encode(), TextInput(0, 4, 1 << 16))
        for text in (self.TEXT, rng.choice(("a", " ", "ab", "\ufdfa", "x y ")) * 1000):
            reader.read([text])

    def _sequence(self, rng: random.Random, name: str, one: Any) -> Any:
        parts = [one(rng) for _ in range(rng.choice((0, 1, 1, 2, 3, 8)))]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else {"type": "Sequence", name: parts}

    def _pattern(self, rng: random.Random) -> Any:
        if rng.random() < 0.3:
            return {"String": "".join(rng.choice("ab e") for _ in range(rng.randrange(4)))}
        return {"Regex": "".join(rng.choice(self.PIECES) for _ in range(rng.randrange(1, 8)))}

    def _normalizer(self, rng: random.Random) -> Any:
        kind = rng.choice(
            (
                "NFC",
                "NFD",
                "NFKC",
                "NFKD",
                "Lowercase",
                "Strip",
                "StripAccents",
                "Nmt",
                "Replace",
                "Replace",
                "Prepend",
                "BertNormalizer",
                "ByteLevel",
            )
        )
        content = "".join(rng.choice("ab e") for _ in range(rng.choice((0, 1, 2, 30))))
        extra: dict[str, Any] = {
            "Replace": {"pattern": self._pattern(rng), "content": content},
            "Prepend": {"prepend": content},
            "Strip": {"strip_left": True, "strip_right": True},
            "BertNormalizer": {
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
        }.get(kind, {})
        return {"type": kind, **extra}

    def _splitter(self, rng: random.Random) -> Any:
        kind = rng.choice(
            (
                "Split",
                "Split",
                "Whitespace",
                "WhitespaceSplit",
                "ByteLevel",
                "Metaspace",
                "Digits",
                "BertPreTokenizer",
            )
        )
        behaviour = rng.choice(("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"))
        extra: dict[str, Any] = {
            "Split": {"pattern": self._pattern(rng), "behavior": behaviour, "invert": rng.random() < 0.5},
            "ByteLevel": {"add_prefix_space": True, "trim_offsets": True, "use_regex": rng.random() < 0.5},
            "Metaspace": {"replacement": "_", "prepend_scheme": "always", "split": True},
            "Digits": {"individual_digits": True},
        }.get(kind, {})
        return {"type": kind, **extra}

    def _model(self, rng: random.Random) -> Any:
        vocabulary = {"<unk>": 4, "a": 1, "b": 2, "ab": 3, "is": 5}
        return rng.choice(
            (
                {"type": "WordLevel", "vocab": vocabulary, "unk_token": rng.choice(("<unk>", "?"))},
                {
                    "type": "BPE",
                    "vocab": vocabulary,
                    "merges": ["a b"],
                    "unk_token": "<unk>",
                    "dropout": rng.choice((None, 0.5)),
                },
                {
                    "type": "WordPiece",
                    "vocab": vocabulary,
                    "unk_token": "<unk>",
                    "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": rng.choice((100, 200, 10**9)),
                },
                {
                    "type": "Unigram",
                    "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -2.0]],
                    "unk_id": rng.choice((0, 7)),
                    "byte_fallback": False,
                },
            )
        )


class Graphs(Target):
    """Graphs of random operators; what is let through runs in ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._operators = sorted({*OPERATORS, "Loop", "NonZero", "RandomNormal"})

    def feed(self, rng: random.Random) -> str | None:
        model = self._model(rng)
        if rng.random() < 0.1:
            model = mutate(rng, model, [model])
        check_self_contained(model)
        check_graph(Model(model), {"x": (None, 8)})
        from cir_infer.runtime.onnx import OnnxBackend

        graph = OnnxBackend("cpu", 1).load("image", Model(model))
        try:
            graph.run({"x": np.ones((2, 8), np.float32)})
        except BundleError:
            raise
        except Exception as error:
            # What ONNX Runtime refuses of a feed is an error of the device; nothing else may come.
            assert type(error).__name__ == "DeviceError"
            return "DeviceError"
        return None

    def _model(self, rng: random.Random) -> bytes:
        names, nodes, constants = ["x"], [], []

        def constant(value: Any) -> str:
            constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(constants)}"))
            return str(constants[-1].name)

        for number in range(rng.choice((1, 2, 4, 8))):
            op, inputs, attributes = self._node(rng, rng.choice(names), rng.choice(names), constant)
            nodes.append(helper.make_node(op, inputs, [f"t{number}"], **attributes))
            names.append(f"t{number}")
        nodes.append(helper.make_node("Identity", [names[-1]], ["y"]))
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [info("x", TensorProto.FLOAT, ["n", 8])],
            [info("y", TensorProto.FLOAT, None)],
            constants,
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()

    def _node(
        self, rng: random.Random, one: str, other: str, constant: Any
    ) -> tuple[str, list[str], dict[str, Any]]:
        """An operator that fits most often, with sizes that fit seldom."""
        large = rng.choice((1, 1, 2, 8, 100, 10**5, 10**9, 1 << 40, -1))
        shape = np.array(
            [rng.choice((1, 2, 8, -1, large)) for _ in range(rng.choice((1, 2, 2, 3)))], np.int64
        )
        axis = rng.choice((-1, 0, 1, 1, 5))
        choices: list[tuple[str, list[str], dict[str, Any]]] = [
            (rng.choice(("Relu", "Exp", "Neg", "Sigmoid", "Softmax", "Identity", "Erf", "Abs")), [one], {}),
            (rng.choice(("Add", "Mul", "Sub", "Max", "Div")), [one, other], {}),
            (
                "Add",
                [one, constant(np.ones(rng.choice(((8,), (1, 8), (8, 1), (large % 1000, 1))), np.float32))],
                {},
            ),
            ("MatMul", [one, constant(np.ones((8, rng.choice((8, 8, 1000))), np.float32))], {}),
            ("MatMul", [one, other], {}),
            ("Transpose", [one], {"perm": rng.choice(([1, 0], [0, 1], [2, 0, 1]))}),
            ("Concat", [one, other, one][: rng.choice((1, 2, 3))], {"axis": axis}),
            ("Reshape", [one, constant(shape)], {}),
            ("Expand", [one, constant(np.maximum(shape, 0))], {}),
            ("Tile", [one, constant(np.maximum(shape, 0))], {}),
            ("Pad", [one, constant(np.array([0, 0, 0, large], np.int64))], {}),
            ("Unsqueeze", [one, constant(np.array([axis], np.int64))], {}),
            ("Squeeze", [one], {}),
            ("Gather", [one, constant(np.array(rng.choice(([0], [0, 1], [9])), np.int64))], {"axis": axis}),
            (
                "Slice",
                [one, *(constant(np.array([n], np.int64)) for n in (0, rng.choice((1, 4, 99)), 1))],
                {},
            ),
            ("ConstantOfShape", [constant(np.maximum(shape, 0))], {}),
            ("Range", [constant(0), constant(large), constant(1)], {}),
            ("Shape", [one], {}),
            ("Cast", [one], {"to": rng.choice((1, 6, 7, 9, 10, 99))}),
            ("ReduceSum", [one, constant(np.array([axis], np.int64))], {"keepdims": rng.randrange(2)}),
            ("ReduceMax", [one], {"axes": [axis], "keepdims": rng.randrange(2)}),
            ("Split", [one], {"axis": axis}),
            ("TopK", [one, constant(np.array([rng.choice((1, 3, 10**9))], np.int64))], {}),
            ("OneHot", [constant(np.array([0, 1])), constant(large), constant(np.zeros(2, np.float32))], {}),
            ("Einsum", [one, other], {"equation": rng.choice(("ij,jk->ik", "ij,kj->ik", "ij,ij->", "..."))}),
            (rng.choice(self._operators), [one, other][: rng.choice((1, 2))], {}),
        ]
        return rng.choice(choices)
