"""The module of docs/systems.md, exported and queried as a user would; errors that say what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cir_export.bring_your_own import is_module_path, load_module
from cir_export.bring_your_own.adapter import Adapter
from cir_export.bring_your_own.attributes import text_of
from cir_export.commands.export import main
from cir_export.export import export_bundle
from cir_export.precision.composing import reference_in_compose
from cir_export.samples import draw_samples
from cir_infer import Engine, Gallery, Searcher
from cir_infer.bundle import Bundle
from cir_infer.errors import CheckpointError, ExportError
from tests.export.precision.bundles import photographs

DOCS = Path(__file__).parents[3] / "docs" / "systems.md"


def example_source() -> str:
    return DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documentation's module as my_models.py in the working directory."""
    (tmp_path / "my_models.py").write_text(example_source(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_models", None)
    return tmp_path


def test_the_documented_example_is_thirty_lines() -> None:
    code = [line for line in example_source().splitlines() if line.strip()]
    assert len(code) <= 30


@torch.no_grad()
def test_the_documented_example_exports_and_answers(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    built = load_module("my_models:ComposeAeLike").model.module
    torch.save({"state_dict": {f"module.{n}": v for n, v in built.state_dict().items()}}, module / "w.pt")
    torch.manual_seed(2)  # weights come from the file, not from the constructor
    assert main(["my_models:ComposeAeLike", "--weights", "w.pt"]) == 0
    said = capsys.readouterr().out
    assert (
        "module my_models:ComposeAeLike" in said and "--weights FILE" not in said and "captions=' '" in said
    )
    assert reference_in_compose(Bundle("ComposeAeLike.cir")) == 0
    assert "texts one by one, composed" in said and "reference embeddings" not in said
    searcher_gallery = Gallery.create(module / "g.gallery", _engine(module))
    images = [np.random.default_rng(i).integers(0, 256, (70, 50, 3), np.uint8) for i in range(6)]
    searcher_gallery.add(images, ids=[f"item {i}" for i in range(6)])
    searcher = Searcher(_engine(module), searcher_gallery)
    hits = searcher.query(images[2], "make it red", k=6)
    pixels = torch.stack([_prepared(image, built.image) for image in images])
    tokens = torch.tensor([built.tokenizer.encode("make it red").ids])
    query = built.encode_query(pixels[2:3], tokens, torch.tensor([tokens.shape[1]]))
    expected = torch.nn.functional.cosine_similarity(query, built.encode_gallery(pixels))
    assert {hit.id: hit.score for hit in hits} == pytest.approx(
        {f"item {i}": float(score) for i, score in enumerate(expected)}, abs=1e-3
    )
    # What it encodes of the reference is its gallery row, so a Hit is refined without its image.
    first, refined = int(hits[0].id.split()[1]), searcher.query(hits[0], "is blue", k=6)
    tokens = torch.tensor([built.tokenizer.encode("is blue").ids])
    query = built.encode_query(pixels[first : first + 1], tokens, torch.tensor([tokens.shape[1]]))
    expected = torch.nn.functional.cosine_similarity(query, built.encode_gallery(pixels))
    assert {hit.id: hit.score for hit in refined} == pytest.approx(
        {f"item {i}": float(score) for i, score in enumerate(expected) if i != first}, abs=1e-3
    )


def _engine(folder: Path):
    return Engine(folder / "ComposeAeLike.cir", device="cpu", threads=1)


def _prepared(image: np.ndarray, spec: dict) -> torch.Tensor:
    from cir_infer.inputs.preprocess import preprocess
    from tests.export.systems.test_clip4cir import _pixels

    return torch.tensor(preprocess(image, _pixels(spec)))


def test_what_is_a_module_path() -> None:
    assert is_module_path("a.b.c:Model")
    for other in ("model.pt", "C:\\models\\model.pt", "a.b", ":Model", "a b:Model", "a:b:c"):
        assert not is_module_path(other)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "has no Model; expected a class or function"),
        ("Model = 3", "cannot be called without arguments"),
        ("def Model(): return 3", "gives a int; expected a torch.nn.Module"),
        ("class Model(nn.Module):\n def __init__(self, dim): super().__init__()", "point at a function"),
        ("class Model(nn.Module): pass", r"no method encode_gallery\(images\).* and no encode_query"),
        ("class Model(Base):\n encode_query = None", r"no method encode_query\(images, tokens, lengths\)"),
        ("class Model(Base):\n image = None", "no attribute image"),
        ("class Model(Base):\n tokenizer = None", "no attribute tokenizer"),
        (
            "class Model(Base):\n def encode_gallery(self, x): return torch.zeros(3, 4)\n"
            " def encode_query(self, x, t, n): return torch.zeros(2, 4)",
            r"encode_gallery gives \(3, 4\) for 2 images; expected \(2, D\)",
        ),
        (
            "class Model(Base):\n def encode_query(self, x, t, n): return x @ x",
            "fails on two images",
        ),
        (
            "class Model(Base):\n def encode_query(self, x, t, n): return torch.zeros(2, 5)",
            r"numerators are \(2, 1, 5\); expected \(2, 1, 4\)",
        ),
        (
            "class Model(Base):\n def terms(self, q): return q[:, None].repeat(1, 2, 1), None",
            r"numerators are \(2, 2, 4\); expected \(2, 1, 4\).*term_names",
        ),
    ],
)
def test_errors_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    (tmp_path / "theirs.py").write_text(
        "import torch\nfrom torch import nn\nfrom cir_export.preprocessing import plain_resize\n"
        "from cir_export.tokenization import build_tokenizer, vocabulary_from_texts\n"
        "class Base(nn.Module):\n"
        " image = plain_resize(8)\n"
        " tokenizer = build_tokenizer(vocabulary_from_texts(['red']))\n"
        " def encode_gallery(self, x): return x.float().mean((1, 2)) @ torch.ones(3, 4)\n"
        " def encode_query(self, x, t, n): return self.encode_gallery(x) + n[:, None]\n" + source
    )
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("theirs", None)
    with pytest.raises(ExportError, match=said):
        load_module("theirs:Model")


def test_a_module_that_is_not_there_and_weights_that_do_not_fit(module: Path) -> None:
    with pytest.raises(ExportError, match="nowhere cannot be imported"):
        load_module("nowhere:Model")
    good = load_module("my_models:ComposeAeLike").model.module.state_dict()
    cases = {
        "weight decode.bias is missing": {n: v for n, v in good.items() if n != "decode.bias"},
        "weight decode.bias has shape": {**good, "decode.bias": torch.zeros(3)},
        "weight 'extra' does not belong": {**good, "extra": torch.zeros(3)},
        "weight 'module.decode.bias' does not belong": {**good, "module.decode.bias": good["decode.bias"]},
        "weight 'x.* .100,000 characters. does not belong": {**good, "x" * 100_000: torch.zeros(3)},
        "decode.bias is of type torch.complex64; expected one like torch.float32": {
            **good,
            "decode.bias": good["decode.bias"] + 1j,
        },
        "decode.bias is of type torch.int8": {**good, "decode.bias": good["decode.bias"].to(torch.int8)},
        "no table of weights": {"epoch": 3},
    }
    for said, content in cases.items():
        torch.save(content, module / "w.pt")
        with pytest.raises(CheckpointError, match=said):
            load_module("my_models:ComposeAeLike", module / "w.pt")


def test_names_of_weights_are_read_as_wrappers_write_them(module: Path) -> None:
    model = load_module("my_models:ComposeAeLike").model.module
    bias = next(name for name in model.state_dict() if name.endswith("bias"))
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        torch.save({f"{prefix}{n}": v + (n == bias) for n, v in model.state_dict().items()}, module / "w.pt")
        found = load_module("my_models:ComposeAeLike", module / "w.pt").model.module.state_dict()
        assert torch.equal(found[bias], model.state_dict()[bias] + 1)


def test_a_part_of_a_module_may_be_called_module(module: Path) -> None:
    """As what wraps another module often calls it; wrappers of PyTorch call the whole so."""
    wrapped = "class Wrapped(ComposeAeLike):\n    def __init__(self):\n        super().__init__()\n"
    wrapped += "        self.module = torch.nn.Linear(2, 2)\n"
    (module / "my_wrapped.py").write_text(f"import torch\nfrom my_models import ComposeAeLike\n{wrapped}")
    weights = load_module("my_wrapped:Wrapped").model.module.state_dict()
    torch.save({**weights, "module.bias": torch.full((2,), 7.0)}, module / "w.pt")
    found = load_module("my_wrapped:Wrapped", module / "w.pt").model.module.state_dict()
    assert found["module.bias"].tolist() == [7.0, 7.0]


def test_the_command_ends_with_one_line(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [sys.executable, "-c", "import sys; from cir_export.commands.export import main; sys.exit(main())"]
    done = subprocess.run([*call, "my_models:Other"], capture_output=True, text=True, cwd=module, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "has no Other" in done.stderr
    for arguments, said in (
        (["model.pt", "--weights", "w.pt"], "--weights belongs to package.module:Name"),
        (["model.pt", "--image-size", "12"], "expected HEIGHTxWIDTH"),
        (["my_models.py"], "is Python code; say what in it makes the model: my_models:NAME"),
        (["my_models"], "is Python code; say what in it makes the model: my_models:NAME"),
        ([str(module / "my_models.py")], "is Python code; say what in it makes the model: my_models:NAME"),
    ):
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code
        stderr = capsys.readouterr().err
        assert (code, stderr.count("\n")) == (2, 1), stderr
        assert said in stderr


_OTHERS = """\
from cir_export.models import RetrievalModel, Terms
from my_models import *

class TextAlone(ComposeAeLike):
    def encode_query(self, images, tokens, lengths):
        return self.rnn(self.embed(tokens), lengths)[1]

class OwnEyes(ComposeAeLike):
    '''The query side has an encoder of images of its own, and an attention over the words.'''

    def __init__(self):
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.ReLU(), nn.Flatten(2))
        self.word, self.key = nn.Linear(32, 32), nn.Parameter(torch.randn(1, 1, 32))

    def encode_query(self, images, tokens, lengths):
        places = self.seen(self.normalize(images)).transpose(1, 2)  # (n, 64, 32)
        places = torch.cat([self.key.expand(images.shape[0], -1, -1), places], 1)
        words = self.word(self.embed(tokens))  # (n, T, 32)
        beyond = torch.arange(tokens.shape[1])[None] >= lengths[:, None]
        scores = (places @ words.transpose(1, 2)).masked_fill(beyond[:, None], -1e9)
        found = scores.softmax(2) @ words
        return torch.cat([(places * found).mean(1), places.amax(1)], 1)

class InFourGraphs(RetrievalModel):
    system, term_names, reference_is_gallery_row = "four", ("similarity",), False
    image, tokenizer = ComposeAeLike.image, ComposeAeLike.tokenizer

    def __init__(self):
        super().__init__(64)
        self.inner = ComposeAeLike()

    @classmethod
    def from_config(cls, config): return cls()

    def encode_gallery(self, images): return self.inner.encode_gallery(images)

    def encode_reference(self, images): return self.inner.encode_gallery(images).relu()

    def encode_text(self, tokens, lengths): return self.inner.rnn(self.inner.embed(tokens), lengths)[1]

    def compose(self, reference, text): return Terms((reference + text)[:, None], None)

class InCompose(InFourGraphs):
    def encode_reference(self, images): return images.float()

    def compose(self, reference, text):
        return super().compose(self.inner.encode_gallery(reference.to(torch.uint8)), text)
"""


@pytest.fixture
def others(module: Path) -> Path:
    (module / "others.py").write_text(_OTHERS, encoding="utf-8")
    sys.modules.pop("others", None)
    return module


def test_a_reference_that_is_encoded_in_compose_is_told(
    others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compose stays float32: the bundle grew, no query became faster, and only the percentage was printed."""
    lower = ["--precision", "int8", "--calibrate", str(photographs(others / "photos")), "-o", "lowered.cir"]
    torch.manual_seed(1)
    assert main(["others:InCompose", "-o", "whole.cir"]) == 0
    trunk = 4 * (16 * 3 * 8 * 8 + 16 + 1024 * 64 + 64)
    assert trunk <= reference_in_compose(Bundle("whole.cir")) < 1.01 * trunk
    capsys.readouterr()
    assert main(["whole.cir", *lower]) == 0
    assert "0.3 MB encode the reference image inside compose" in capsys.readouterr().out
    for name in ("others:TextAlone", "others:InFourGraphs"):
        assert main([name, "-o", "other.cir"]) == 0
        assert reference_in_compose(Bundle("other.cir")) == 0, name
    capsys.readouterr()
    assert main(["other.cir", *lower]) == 0
    assert "inside compose" not in capsys.readouterr().out


def test_a_query_is_exported_in_parts(
    others: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What encodes the reference, and the text, stands in graphs of their own: lowered, and run but once."""
    torch.manual_seed(1)
    capsys.readouterr()
    assert main(["others:OwnEyes", "-o", "parts.cir"]) == 0
    assert "as others:OwnEyes makes them; --weights FILE loads" in capsys.readouterr().out
    monkeypatch.setattr(Adapter, "in_one_piece", False)
    torch.manual_seed(1)
    assert main(["others:OwnEyes", "-o", "whole.cir"]) == 0
    parts, whole = Bundle("parts.cir"), Bundle("whole.cir")
    assert parts.manifest.fingerprint == whole.manifest.fingerprint
    assert parts.graph("compose").size < 4_000 < 20_000 < parts.graph("reference").size
    images = [np.random.default_rng(i).integers(0, 256, (70, 50, 3), np.uint8) for i in range(3)]
    texts = ["is red", "make it a blue ring", "has long sleeves"]
    with Engine(parts, device="cpu") as engine, Engine(whole, device="cpu") as expected:
        # One image, encoded once, with each text.
        seen = engine.encode_references(images)
        for at in range(3):
            terms = engine.compose(np.repeat(seen[at : at + 1], 3, 0), engine.encode_texts(texts))
            pixels = np.repeat(expected.encode_references(images[at : at + 1]), 3, 0)
            wanted = expected.compose(pixels, expected.encode_texts(texts))
            np.testing.assert_allclose(terms.numerators, wanted.numerators, rtol=0, atol=1e-6)
    lower = ["--precision", "int8", "--calibrate", str(photographs(others / "photos")), "-o", "int8.cir"]
    assert main(["parts.cir", *lower]) == 0
    assert "reference" in Bundle("int8.cir").manifest.graphs
    assert Bundle("int8.cir").graph("reference").size < 0.5 * parts.graph("reference").size


def test_what_a_tokenizer_cannot_read_is_told_by_the_tokenizer_itself(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BERT calls its unknown word otherwise, and bytes spell everything."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    theirs = load_module("my_models:ComposeAeLike").model.module
    pieces = Tokenizer(models.WordPiece({"[PAD]": 0, "[UNK]": 1, "red": 2}, unk_token="[UNK]"))
    assert text_of(theirs, pieces, "theirs")["unk_id"] == 1
    assert text_of(theirs, theirs.tokenizer, "theirs")["unk_id"] == theirs.tokenizer.token_to_id("<unk>")
    spelling = Tokenizer(models.BPE({"<unk>": 0, "r": 1}, [], unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert text_of(theirs, spelling, "theirs")["unk_id"] is None
    monkeypatch.setattr(type(theirs), "unk_id", 2, raising=False)
    assert text_of(theirs, pieces, "theirs")["unk_id"] == 2


def test_a_row_is_the_reference_where_weights_lie_beside_the_graphs(module: Path) -> None:
    trained = load_module("my_models:ComposeAeLike")
    samples = draw_samples(trained.image, trained.text, trained.tokenizer)
    assert set(export_bundle(trained, "beside.cir", samples, large=1).manifest.graphs) == {
        "image",
        "text",
        "compose",
    }
    assert Bundle("beside.cir").manifest.weights is not None
