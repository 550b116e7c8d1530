"""Weights to start from, in the files that people have: what they are shows in their content.

| file | gives |
|---|---|
| model.pt of cir-train | every weight of the same name and shape, single numbers too |
| torchvision's state dict of a ResNet | the trunk, which must be that ResNet |
| GloVe's text file, "word v1 v2 ..." | the vectors of the words that it knows |
| folder of a BERT (Hugging Face) | a vector a word: its own, or the mean of its pieces' |
| folder of a CLIP (Hugging Face, open_clip) | all of a clip4cir's CLIP; its tokenizer: `reading.py` |
| the same, or of a SigLIP | both towers of a head over a pair |

Word vectors go by the word, so a model.pt may come from other texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from cir_export.checkpoints.folders import load_folder
from cir_export.checkpoints.folders.files import json_of, licence_of
from cir_export.checkpoints.folders.weights import HUGGING_FACE, open_weights
from cir_export.container import read_container
from cir_export.model_file import TrainedModel, is_model_file, model_from_content
from cir_export.models import RetrievalModel
from cir_export.models.encoders.clip import Clip
from cir_export.models.encoders.pair import Pair
from cir_export.models.encoders.resnet import ResNet, resnet_name
from cir_export.tokenization import SPECIALS
from cir_infer.errors import CheckpointError, TrainingError, shown
from cir_infer.foreign import has_file

__all__ = ["Start", "start_from"]

_UNSTATED = "not stated in the file"
_UNKNOWN = "[UNK]"
_KINDS = {"clip": "CLIP", "siglip": "SigLIP", "blip": "BLIP"}
_BERT = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Start:
    """A file to start from, as it goes into provenance.

    Attributes:
        file: its name.
        sha256: of its content; of a folder, of its weights.
        kind: what it is.
        licence: as it states itself.
        taken: how much of it was taken over, in words.
    """

    file: str
    sha256: str
    kind: str
    licence: str
    taken: str


def start_from(model: RetrievalModel, path: Path, tokenizer: Tokenizer) -> Start:
    """Take over weights from a file or folder.

    Raises:
        TrainingError: nothing in it fits the model.
        CheckpointError: it is none of the kinds above, or damaged.
    """
    if path.is_dir():
        return _folder(model, path, tokenizer)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected weights to start from")
    digest = _sha256(path)
    if _is_text(path):
        taken = _glove(model, path, tokenizer)
        return Start(path.name, digest, "GloVe word vectors", _UNSTATED, taken)
    content = read_container(path)
    if is_model_file(content):
        trained = model_from_content(content, str(path))
        licence = str(trained.provenance.get("weights_licence", _UNSTATED))
        taken = _same_names(model, _words_moved(model, trained, tokenizer), str(path))
        return Start(path.name, digest, "model file of cir-train", licence, taken)
    name = None
    if isinstance(content, Mapping) and all(isinstance(one, Tensor) for one in content.values()):
        name = resnet_name({key: one for key, one in content.items() if not str(key).startswith("fc.")})
    if name is None:
        raise CheckpointError(
            f"{path} is no weights to start from; expected a model.pt of cir-train, torchvision's state dict "
            "of a ResNet, GloVe's text file, or a folder of a BERT or CLIP"
        )
    return Start(path.name, digest, f"torchvision {name}", _UNSTATED, _trunk(model, content, name, path))


def _same_names(model: RetrievalModel, weights: Mapping[str, Tensor], where: str) -> str:
    own = model.state_dict()
    shared = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    if not any(weight.ndim for weight in shared.values()):  # every system has the temperature
        raise TrainingError(f"{where} shares no weight with system {shown(model.system)}")
    model.load_state_dict(shared, strict=False)
    return f"{len(shared)} of {len(own)} weights"


def _words_moved(model: RetrievalModel, trained: TrainedModel, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A model file's weights with its word vectors in the rows that the words have here."""
    weights = trained.model.state_dict()
    here, there = tokenizer.get_vocab(), trained.tokenizer.get_vocab()
    embedding = getattr(getattr(model, "text_encoder", model), "embed", None)
    if here == there or not isinstance(embedding, nn.Embedding):
        return weights
    name = next(name for name, weight in model.named_parameters() if weight is embedding.weight)
    theirs = weights.get(name)
    if theirs is not None and theirs.shape[1:] == embedding.weight.shape[1:]:
        moved = embedding.weight.detach().clone()
        for word in here.keys() & there.keys():
            moved[here[word]] = theirs[there[word]]
        weights[name] = moved
    return weights


def _trunk(model: RetrievalModel, weights: Mapping[str, Any], name: str, path: Path) -> str:
    trunk = next((part for part in model.modules() if isinstance(part, ResNet)), None)
    if trunk is None:
        raise TrainingError(f"{path} is a {name}; the model has no ResNet, set model.image.trunk = {name!r}")
    own = trunk.state_dict()
    fitting = {key: weights[key] for key in own if isinstance(weights.get(key), Tensor)}
    wrong = [key for key in own if key not in fitting or fitting[key].shape != own[key].shape]
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise TrainingError(
            f"{path} is a {name} and does not fit the model's trunk at {wrong[0]}; "
            f"set model.image.trunk = {name!r}"
        )
    trunk.load_state_dict(fitting, strict=False)
    return f"the trunk, {len(fitting)} weights"


def _glove(model: RetrievalModel, path: Path, tokenizer: Tokenizer) -> str:
    """Line by line: the file may be gigabytes, the vocabulary is small.

    The vector is what a line ends with: some of GloVe's words have spaces in them ("at name@domain.com").
    """
    embedding = _words(model, str(path))
    vocabulary = tokenizer.get_vocab()
    found, length = 0, None
    with torch.no_grad(), path.open(encoding="utf-8", errors="strict", newline="\n") as file:
        try:
            for line in file:
                if length is None:  # the first word, the most frequent one, has none
                    length = line.rstrip().count(" ")
                    if length != embedding.embedding_dim:
                        raise TrainingError(_other_length(str(path), length, embedding))
                word, *values = line.rstrip().rsplit(" ", length)
                row = vocabulary.get(word)
                if row is None or word in SPECIALS:
                    continue
                embedding.weight[row] = _vector(values, f"{path}, the word {shown(word)}", length)
                found += 1
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is no text in UTF-8 ({error.reason}); expected GloVe's") from error
    return _counted(found, vocabulary, str(path))


def _folder(model: RetrievalModel, folder: Path, tokenizer: Tokenizer) -> Start:
    config = json_of(folder, "config.json") or {}
    digest = hashlib.sha256()
    for name in sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")):
        digest.update(f"{name} {_sha256(folder / name)}".encode())
    licence = licence_of(folder) or "not stated in the folder"
    if config.get("model_type") == "bert":
        kind, taken = "Hugging Face BERT, word vectors", _bert(model, folder, tokenizer)
    else:
        kind, taken = _towers(model, folder)
    return Start(folder.name, digest.hexdigest(), kind, licence, taken)


def _towers(model: RetrievalModel, folder: Path) -> tuple[str, str]:
    """What the folder holds, and what was taken."""
    pair = getattr(load_folder(folder).model, "pair", None)
    own = getattr(model, "clip", getattr(model, "pair", None))
    wanted = type(own) if isinstance(own, Pair) else Clip
    if not isinstance(pair, wanted):  # a SigLIP's layers have the same names, and are read otherwise
        kind = _KINDS[wanted.family]
        raise TrainingError(f"{folder} is no {kind}; expected the folder of a BERT or a {kind}")
    prefix = "pair" if isinstance(getattr(model, "pair", None), Pair) else "clip"
    weights = {f"{prefix}.{name}": weight for name, weight in pair.state_dict().items()}
    own = model.state_dict()
    fitting = weights.keys() & own.keys()
    if fitting and any(own[name].shape != weights[name].shape for name in weights if name in own):
        raise TrainingError(
            f"{folder} is of other sizes than model.{prefix}; leave that table empty to take its sizes"
        )
    return _KINDS[pair.family], _same_names(model, weights, str(folder))


def _bert(model: RetrievalModel, folder: Path, tokenizer: Tokenizer) -> str:
    embedding = _words(model, str(folder))
    weights = open_weights(folder, HUGGING_FACE)
    name = next((name for name in (f"bert.{_BERT}", _BERT) if name in weights.names), None)
    if name is None:
        raise CheckpointError(f"{weights.where} has no {_BERT}; expected a BERT")
    vectors = weights.tensor(name)
    if vectors.shape[1] != embedding.embedding_dim:
        raise TrainingError(_other_length(str(folder), vectors.shape[1], embedding))
    pieces = _pieces(folder)
    found = 0
    with torch.no_grad():
        for word, row in tokenizer.get_vocab().items():
            ids = [] if word in SPECIALS else pieces.encode(word, add_special_tokens=False).ids
            if ids and max(ids) < len(vectors) and pieces.token_to_id(_UNKNOWN) not in ids:
                embedding.weight[row] = vectors[ids].mean(0)
                found += 1
    return _counted(found, tokenizer.get_vocab(), str(folder))


def _pieces(folder: Path) -> Tokenizer:
    try:
        if has_file(folder / "tokenizer.json", CheckpointError):
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if has_file(folder / "vocab.txt", CheckpointError):
            vocabulary = models.WordPiece.read_file(str(folder / "vocab.txt"))
            return Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{folder}: its tokenizer cannot be read ({shown(error)})") from error
    raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.txt; expected one of them")


def _words(model: RetrievalModel, where: str) -> nn.Embedding:
    encoder = getattr(model, "text_encoder", model)
    found = getattr(encoder, "embed", None)
    if not isinstance(found, nn.Embedding):
        raise TrainingError(f"{where} holds word vectors; system {shown(model.system)} has none of its own")
    return found


def _vector(values: list[str], where: str, length: int) -> Tensor:
    if len(values) != length:
        raise CheckpointError(f"{where}: {len(values)} values; expected {length}, as in the first line")
    try:
        vector = torch.tensor([float(value) for value in values])
    except ValueError as error:
        raise CheckpointError(f"{where}: {shown(error)}; expected numbers") from error
    if not torch.isfinite(vector).all():
        raise CheckpointError(f"{where}: a value is not finite")
    return vector


def _other_length(where: str, length: int, embedding: nn.Embedding) -> str:
    return (
        f"{where} has vectors of {length} values, the model of {embedding.embedding_dim}; "
        f"set model.text.word_dim = {length}"
    )


def _counted(found: int, vocabulary: Mapping[str, int], where: str) -> str:
    known = len(set(vocabulary) - set(SPECIALS))
    if not found:
        raise TrainingError(f"{where} knows none of the {known} words of the training texts")
    return f"{found} of {known} word vectors"


def _is_text(path: Path) -> bool:
    """Whether a file begins with a word and numbers, as GloVe's do."""
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    try:
        values = first.decode().split(" ")[1:]
        return len(values) > 1 and all(float(value) is not None for value in values)
    except ValueError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
