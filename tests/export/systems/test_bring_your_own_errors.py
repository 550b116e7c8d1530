"""What is wrong with a user's module is said before any export: which attribute or method, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cir_export.bring_your_own import load_module
from cir_export.export import export_bundle
from cir_export.graphs.failure import export_failure
from cir_export.samples import draw_samples
from cir_infer import Engine
from cir_infer.errors import CirError, ExportError

BASE = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from cir_export.models import RetrievalModel, Terms
from cir_export.preprocessing import feature_input, plain_resize
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts

class Base(nn.Module):
    image = plain_resize(8)
    tokenizer = build_tokenizer(vocabulary_from_texts(["red blue green"]))
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
    def encode_gallery(self, images):
        return images.float().mean((1, 2)) @ torch.ones(3, 4)
    def encode_query(self, images, tokens, lengths):
        return self.encode_gallery(images) + self.embed(tokens).mean(1)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def written(source: str) -> None:
        sys.modules.pop("theirs", None)
        (tmp_path / "theirs.py").write_text(BASE + source + "\n")
        monkeypatch.chdir(tmp_path)
        sys.dont_write_bytecode = True

    return written


ATTRIBUTES = [
    (
        "image = {'kind': 'pixels', 'height': 8, 'width': 8}",
        r"attribute image: image\.steps is missing.*padded_crop",
    ),
    ("image = {'kind': 'pixels'}", r"attribute image: image\.steps is missing"),
    ("image = {'kind': 'photos'}", r"attribute image: image\.kind is 'photos'"),
    ("image = {'height': 8}", r"attribute image: image\.kind is missing"),
    (
        "image = {**plain_resize(8), 'steps': [{'op': 'blur'}]}",
        r"attribute image: image\.steps\[0\]\.op is 'blur'",
    ),
    ("image = {**plain_resize(8), 'height': 8.5}", r"attribute image: image\.height is 8\.5"),
    ("image = {**plain_resize(8), 'mean': torch.zeros(3)}", r"attribute image.*not plain JSON"),
    ("image = plain_resize", r"attribute image is <bound method .*padded_crop"),
    ("image = 224", r"attribute image is 224; set it to the preprocessing"),
    ("captions = None", r"attribute captions is None; expected the text that joins.*leave it out"),
    ("captions = ''", r"attribute captions is ''"),
    ("captions = ['a']", r"attribute captions is \['a'\]"),
    ("pad_id = None", r"attribute pad_id is None; expected a whole number, a token id below 8"),
    ("pad_id = 8", r"attribute pad_id is 8; expected a whole number, a token id below 8"),
    ("pad_id = True", r"attribute pad_id is True"),
    ("unk_id = 99", r"attribute unk_id is 99; expected a whole number, a token id below 8, or None"),
    ("max_tokens = 0", r"attribute max_tokens is 0; expected a whole number, from 1 to 65536"),
    ("max_tokens = '64'", r"attribute max_tokens is '64'"),
    ("term_names = 'low'", r'attribute term_names is the text "low".*term_names = \("low",\)'),
    ("term_names = ()", r"attribute term_names is \(\)"),
    ("term_names = ('a', 'a')", r"attribute term_names is \('a', 'a'\)"),
    ("term_names = ('two words',)", r"attribute term_names is \('two words'\)"),
    ("term_names = 3", r"attribute term_names is 3"),
    ("tokenizer = 'tokenizer.json'", r"has a str as tokenizer; set the attribute tokenizer to a tokenizers"),
]
METHODS = [
    ("encode_gallery = lambda self: 1", r"encode_gallery cannot be called as encode_gallery\(images\)"),
    (
        "def encode_query(self, images, tokens): return images",
        r"encode_query cannot be called as encode_query\(images, tokens, lengths\)",
    ),
    ("terms = 'sum'", r"attribute terms is 'sum'; expected a method terms\(query\)"),
    ("def terms(self): return 1", r"terms cannot be called as terms\(query\)"),
    (
        "def encode_gallery(self, x): return x.float().mean((1, 2)) @ torch.ones(3, 4) * torch.nan",
        r"encode_gallery gives NaN or infinity",
    ),
    (
        "def encode_gallery(self, x): return x.sum((1, 2))",
        r"encode_gallery gives torch\.int64; expected a tensor of floats",
    ),
    (
        "def encode_gallery(self, x): return x.float().mean((1, 2)), None",
        r"encode_gallery gives a tuple of 2",
    ),
    ("def encode_gallery(self, x): return x.numpy()", r"encode_gallery gives ndarray .*expected a tensor"),
    ("def encode_gallery(self, x): return None", r"encode_gallery gives None"),
    (
        "def encode_gallery(self, x): return x.float().mean((1, 2)).squeeze(0)",
        r"gives float32 \(3,\) for one image; expected \(1, 3\)",
    ),
    (
        "def encode_gallery(self, x): return x.float()",
        r"gives \(2, 8, 8, 3\) for 2 images; expected \(2, D\)",
    ),
    (
        "def encode_gallery(self, x): return torch.rand(len(x), 4)",
        r"encode_gallery gives differs from run to run",
    ),
    (
        "def encode_gallery(self, x): x = x.float(); return (x - x.mean(0)).mean((1, 2)) @ torch.ones(3, 4)",
        r"depends on the images beside it",
    ),
    (
        "image = plain_resize(64)\n"
        "    def encode_gallery(self, x): return (x / x.max()).mean((1, 2)) @ torch.ones(3, 4)",
        r"what encode_gallery gives depends on the images beside it",
    ),
    (
        "def encode_gallery(self, x): return (x[:1] - 1.0 * x).mean((1, 2)) @ torch.ones(3, 4) + 1",
        r"what encode_gallery gives depends on the images beside it",
    ),
    (
        "def encode_query(self, x, t, n): return self.embed(t).sum(1) + n.max() - n[:, None]",
        r"what the query gives depends on the queries beside it",
    ),
    (
        "def terms(self, q): return q[:, None], (q.square() / q.square().max())[:, None]",
        r"what the query as weights gives depends on the queries beside it",
    ),
    (
        "def terms(self, q): return q[:, None], torch.rand_like(q)[:, None]",
        r"what the query as weights gives differs from run to run",
    ),
    (
        "def __init__(self): super().__init__(); self.layers = [nn.ReLU(), nn.Linear(4, 4)]",
        r"'layers' is a list with a Linear in it, where PyTorch does not look for weights.*nn\.ModuleList",
    ),
    (
        "def __init__(self): super().__init__(); self.embed.scales = {'a': (nn.Parameter(torch.ones(4)),)}",
        r"'embed\.scales' is a dict with a Parameter in it.*nn\.ParameterList",
    ),
    (
        "def encode_gallery(self, x): raise KeyError('trunk')",
        r"encode_gallery fails on two images, uint8 \(2, 8, 8, 3\): KeyError.*\(theirs\.py, line 20\)",
    ),
    (
        "def encode_query(self, x, t, n): return torch.full((len(x), 4), torch.nan)",
        r"numerators hold NaN or infinity",
    ),
    (
        "def encode_query(self, x, t, n): return self.embed(t + 1)[:, 0]",
        r"encode_query fails.*tokens run from 0 to 7.*nn\.Embedding",
    ),
    (
        "def terms(self, q): return q[:, None]",
        r"terms\(query\) gives one tensor \(2, 1, 4\); expected \(numerators, weights\)",
    ),
    ("def terms(self, q): return q[:, None], q[:, None], None", r"terms\(query\) gives 3 values"),
    (
        "def terms(self, q): return {'numerators': q}",
        r"terms\(query\) gives .*expected \(numerators, weights\)",
    ),
    ("def terms(self, q): return q, None", r"numerators are \(2, 4\); expected \(2, 1, 4\)"),
    (
        "def terms(self, q): return q[:, None], q[:, None, :2].abs()",
        r"weights are \(2, 1, 2\); expected \(2, 1, 4\)",
    ),
    (
        "def terms(self, q): return q[:, None], -torch.ones_like(q)[:, None]",
        r"weights are negative, down to -1; expected >= 0.*softplus",
    ),
    (
        "def terms(self, q): return q[:, None], torch.full_like(q, torch.inf)[:, None]",
        r"weights hold NaN or infinity",
    ),
    (
        "def terms(self, q): return q[:, None], (q > 0)[:, None]",
        r"the weights of terms\(query\) are torch\.bool",
    ),
    (
        "def terms(self, q): return q[:, None].long(), None",
        r"the numerators of terms\(query\) are torch\.int64",
    ),
    (
        "def terms(self, q): return q.missing",
        r"encode_query, or terms, fails on two images and texts.*missing.*\(theirs\.py, line 20\)",
    ),
    (
        "def __init__(self): super().__init__(); self.rnn = nn.GRU(4, 4, batch_first=True)\n"
        "    def encode_query(self, x, t, n): \n"
        "        packed = pack_padded_sequence(self.embed(t), n, True, enforce_sorted=False)\n"
        "        return self.rnn(packed)[1][0]",
        r"rnn is given a packed sequence.*Recurrent",
    ),
    (
        "def __init__(self): super().__init__(); self.head = nn.LazyLinear(4)",
        r"weight head\.weight has no values yet",
    ),
    (
        "def __init__(self): super().__init__(); self.head = nn.Linear(4, 4, device='meta')",
        r"weight head\.weight has no values yet",
    ),
    (
        "def __init__(self): super().__init__(); self.q = torch.ao.nn.quantized.dynamic.Linear(4, 4)",
        r"q is a quantised Linear.*--precision int8",
    ),
    ("captions = '\\ud83d'", r"attribute captions is '.ud83d'"),
    ("domain = '\\ud83d'", r"attribute domain is '.ud83d'; expected a text"),
    ("domain = 'x' * 1001", r"attribute domain is 'x.*1,001 characters"),
    (
        "def __init__(self): super().__init__(); self.register_buffer('scale', torch.tensor(torch.nan))",
        r"weight scale holds NaN",
    ),
]
MODULES = [
    (
        "class Model(Base):\n    def __init__(self): raise FileNotFoundError('clip.pt')",
        r"raises FileNotFoundError: clip\.pt \(theirs\.py, line 20\)",
    ),
    ("class Model(Base):\n    def __init__(self): {}['dim']", r"theirs:Model\(\) raises KeyError: 'dim'"),
    (
        "class Model(Base):\n    def __init__(self): int(None)",
        r"theirs:Model\(\) raises TypeError",
    ),
    (
        "class Model(Base):\n    def __init__(self): import not_there",
        r"raises ModuleNotFoundError.*not_there",
    ),
    ("def Model(): raise SystemExit(3)", r"theirs:Model\(\) raises SystemExit: 3"),
    (
        "def Model(size): return Base()",
        r"cannot be called without arguments \(missing a required argument: 'size'\)",
    ),
    (
        "import not_there",
        r"the import of theirs raises ModuleNotFoundError.*'not_there' \(theirs\.py, line 19\)",
    ),
    ("def broken(:", r"the import of theirs raises SyntaxError"),
    ("1 / 0", r"the import of theirs raises ZeroDivisionError"),
]


@pytest.mark.parametrize(("line", "said"), [*ATTRIBUTES, *METHODS])
def test_an_attribute_or_method_is_named_with_its_remedy(write, line: str, said: str) -> None:
    write(f"class Model(Base):\n    {line}")
    with pytest.raises(ExportError, match=said) as raised:
        load_module("theirs:Model")
    assert str(raised.value).startswith("theirs:Model") and len(str(raised.value)) < 600


@pytest.mark.parametrize(("source", "said"), MODULES)
def test_what_the_users_code_raises_is_told_with_its_line(write, source: str, said: str) -> None:
    write(source)
    with pytest.raises(ExportError, match=said):
        load_module("theirs:Model")
    assert str(Path.cwd()) not in sys.path


def test_a_system_of_its_own_is_tried_as_well(write) -> None:
    write(
        "class Model(RetrievalModel):\n"
        "    system, term_names, image, tokenizer = 'mine', ('x',), feature_input(4), Base.tokenizer\n"
        "    def __init__(self): super().__init__(4)\n"
        "    @classmethod\n"
        "    def from_config(cls, config): return cls()\n"
        "    def encode_gallery(self, images): return images\n"
        "    def encode_text(self, tokens, lengths): return tokens.float().mean(1, keepdim=True)\n"
        "    def compose(self, reference, text): return Terms((reference + text)[:, None], None)"
    )
    with pytest.raises(ExportError, match="encode_text gives depends on what stands beyond a text's length"):
        load_module("theirs:Model")


def test_a_tokenizer_of_transformers_is_taken_for_the_one_inside(write) -> None:
    write(
        "class Fast:\n    backend_tokenizer = Base.tokenizer\n"
        "class Model(Base):\n    tokenizer = Fast()\n    def __init__(self): nn.Module.__init__(self); "
        "self.embed = nn.Embedding(8, 4)"
    )
    assert load_module("theirs:Model").tokenizer.get_vocab_size() == 8


@pytest.mark.parametrize(
    ("said", "pad"),
    [
        ("tokenizer = Base.tokenizer", 0),
        ("tokenizer = Tokenizer.from_str(Base.tokenizer.to_str()); tokenizer.enable_padding(pad_id=2)", 2),
        ("tokenizer = type('Fast', (), {'backend_tokenizer': Base.tokenizer, 'pad_token_id': 3})()", 3),
        ("tokenizer = type('Fast', (), {'backend_tokenizer': Base.tokenizer, 'pad_token_id': None})()", 0),
        ("pad_id = 1; tokenizer = Tokenizer.from_str(Base.tokenizer.to_str())", 1),
    ],
)
def test_texts_are_filled_up_as_the_tokenizer_says(write, said: str, pad: int) -> None:
    write(f"from tokenizers import Tokenizer\nclass Model(Base):\n    {said}")
    assert load_module("theirs:Model").text["pad_id"] == pad


def test_a_list_of_parts_that_are_attributes_too_is_no_place_of_its_own(write, tmp_path: Path) -> None:
    write(
        "class Model(Base):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.rnn = nn.Linear(4, 4), nn.LSTM(4, 4)\n"
        "        self.steps = {'a': [self.a, nn.ReLU(), self.a.weight], 'again': None}\n"
        "        self.steps['again'] = self.steps"
    )
    assert load_module("theirs:Model").model.embedding_dim == 4


def test_a_torchscript_module_is_refused_by_name(write) -> None:
    write(
        "class Model(Base):\n    def __init__(self): super().__init__(); "
        "self.trunk = torch.jit.script(nn.Linear(2, 2))"
    )
    with pytest.raises(ExportError, match=r"theirs:Model: trunk is a module of torch\.jit"):
        load_module("theirs:Model")


def test_weights_that_are_not_finite_are_refused(write, tmp_path: Path) -> None:
    write("Model = Base")
    torch.save({"embed.weight": torch.full((8, 4), torch.nan)}, tmp_path / "w.pt")
    with pytest.raises(CirError, match=r"weight embed\.weight holds NaN or infinity"):
        load_module("theirs:Model", tmp_path / "w.pt")


@pytest.mark.parametrize(("kind", "found"), [("int8", [1, 300]), ("bool", [0, 2]), ("uint8", [-1, 1])])
def test_whole_numbers_that_do_not_fit_are_refused(
    write, tmp_path: Path, kind: str, found: list[int]
) -> None:
    """PyTorch wraps them round: 300 became 44."""
    write(
        "class Model(Base):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.register_buffer('edges', torch.zeros(2, dtype=torch.{kind}))"
    )
    weights = {"embed.weight": torch.zeros(8, 4), "edges": torch.tensor(found)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CirError, match=f"weight edges holds a number that torch.{kind} does not have"):
        load_module("theirs:Model", tmp_path / "w.pt")
    torch.save({**weights, "edges": torch.tensor([0, 1])}, tmp_path / "w.pt")
    module: Any = load_module("theirs:Model", tmp_path / "w.pt").model.module
    assert module.edges.tolist() == [0, 1]


NESTED = """
class Model(Base):
    def __init__(self):
        super().__init__()
        inner = nn.Linear(4, 4)
        for _ in range({deep}):
            inner = nn.Sequential(inner)
        self.inner = inner
        {more}
    def encode_gallery(self, images):
        return self.inner(images.float().mean((1, 2)) @ torch.ones(3, 4))
"""


def export(folder: Path) -> None:
    trained = load_module("theirs:Model")
    samples = draw_samples(trained.image, trained.text, trained.tokenizer)
    export_bundle(trained, folder / "deep.cir", samples)


@pytest.mark.parametrize("deep", [63, 200, 2000, 100_000])
def test_modules_deep_in_each_other(write, deep: int) -> None:
    """PyTorch walks over them by functions that call themselves, which ended in a RecursionError."""
    write(NESTED.format(deep=deep, more=""))
    with pytest.raises(
        ExportError, match=rf"lie {deep + 2:,} deep in each other; expected at most 64"
    ) as told:
        load_module("theirs:Model")
    assert len(str(told.value)) < 400


def test_modules_as_deep_as_may_be_are_exported(write, tmp_path: Path) -> None:
    write(NESTED.format(deep=62, more="self.twice = nn.ModuleList([inner, inner[0], nn.Sequential(inner)])"))
    with pytest.raises(ExportError, match="lie 66 deep"):
        load_module("theirs:Model")
    write(NESTED.format(deep=61, more="self.twice = nn.ModuleList([inner, inner[0]])"))
    export(tmp_path)
    with Engine(tmp_path / "deep.cir") as engine:
        assert engine.manifest.embedding_dim == 4


def test_a_module_that_holds_itself(write) -> None:
    write(NESTED.format(deep=1, more="self.inner.add_module('again', nn.Sequential(self))"))
    with pytest.raises(ExportError, match=r"holds itself among its parts"):
        load_module("theirs:Model")


def test_code_that_calls_itself_too_deep_is_told_so() -> None:
    told = str(export_failure("image", RecursionError("maximum recursion depth exceeded")))
    assert "depth exceeded; the code calls itself, or modules call each other, too deep; use a loop" in told
