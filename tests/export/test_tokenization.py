from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cir_export.preprocessing import feature_input, word_text
from cir_export.samples import draw_samples
from cir_export.tokenization import SPECIALS, build_tokenizer, vocabulary_from_texts
from cir_infer.errors import ExportError, UsageError

# What NLTK 3.9 makes of the text after the authors' cleaning.
CLEANED = [
    ("It isn't (red)!", ["it", "isnt", "(", "red", ")"]),
    ("dark-blue/red\\dress", ["dark", "blue", "red", "dress"]),
    ("I'm 3/4  a.b.c.", ["im", "abc"]),
    ("cannot CANNOT cannots", ["can", "not", "can", "not", "cannots"]),
    ("gimme gonna gotta lemme wanna", ["gim", "me", "gon", "na", "got", "ta", "lem", "me", "wan", "na"]),
    ("(wanna) wannabe", ["(", "wan", "na", ")", "wannabe"]),
    ("dress\tcode", ["dresscode"]),
    ("d\u00e9coll\u00e9 \u65e5\u672c", ["dcoll"]),
    ("<end> <and>", ["end", "and"]),
    (" ( ", ["("]),
    ("... ! 42", []),
]


@pytest.mark.parametrize(("text", "expected"), CLEANED)
def test_texts_are_cleaned_and_split_as_the_authors_do(text: str, expected: list[str]) -> None:
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *dict.fromkeys(expected)])}
    tokenizer = build_tokenizer(vocabulary)
    assert tokenizer.encode(text, add_special_tokens=False).tokens == expected


def test_one_text_and_a_pair_get_their_special_tokens() -> None:
    tokenizer = build_tokenizer(vocabulary_from_texts(["is red"]))
    assert tokenizer.encode("is red").ids == [1, 5, 6, 3]
    assert tokenizer.encode("is", "huge red").ids == [1, 5, 2, 4, 6, 3]


def test_words_are_numbered_by_first_occurrence_after_the_special_tokens() -> None:
    vocabulary = vocabulary_from_texts(["is red, is Blue", "cannot be red"])
    assert list(vocabulary) == [*SPECIALS, "is", "red", "blue", "can", "not", "be"]
    assert list(vocabulary.values()) == list(range(11))


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_no_text_can_type_a_special_token(text: str) -> None:
    tokenizer = build_tokenizer(vocabulary_from_texts(["start end and pad unk"]))
    ids = tokenizer.encode(text).ids
    assert ids[0] == 1 and ids[-1] == 3
    assert not {0, 1, 2, 3} & set(ids[1:-1])


@settings(max_examples=100)
@given(st.lists(st.text(alphabet="abc XY-/()'", max_size=30), min_size=1, max_size=6))
def test_a_vocabulary_knows_every_word_of_its_texts(texts: list[str]) -> None:
    try:
        tokenizer = build_tokenizer(vocabulary_from_texts(texts))
    except UsageError:
        return  # no word in any of them
    assert all(4 not in tokenizer.encode(text).ids for text in texts)


def test_bad_vocabularies_are_refused() -> None:
    with pytest.raises(UsageError, match="no word"):
        vocabulary_from_texts(["...", "12"])
    with pytest.raises(UsageError, match="<unk>"):
        build_tokenizer({"<pad>": 0, "<start>": 1, "<and>": 2, "<end>": 3, "red": 4})
    with pytest.raises(UsageError, match=r"0\.\.5"):
        build_tokenizer({word: index for index, word in enumerate(SPECIALS)} | {"red": 6})


@pytest.mark.parametrize("model", [models.WordLevel, models.WordPiece])
def test_a_tokenizer_whose_unknown_token_it_does_not_know_is_refused(model: Any) -> None:
    tokenizer = Tokenizer(model({"red": 0, "dress": 1}, unk_token="[UNK]"))
    with pytest.raises(
        ExportError, match=r"the tokenizer does not read '.*Missing \[UNK\] token.*expected one"
    ):
        draw_samples(feature_input(4), word_text(), tokenizer)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_model_of_short_texts_is_verified_with_short_ones(most: int) -> None:
    """Of one token there was nothing to verify with, and the export ended in a ValueError of PyTorch."""
    alone = Tokenizer(models.WordLevel({"red": 0, "blue": 1, "[UNK]": 2}, unk_token="[UNK]"))
    alone.pre_tokenizer = pre_tokenizers.Whitespace()
    image = {"kind": "features", "size": 4}
    texts = draw_samples(image, {"max_tokens": most, "captions": " "}, alone).texts
    assert texts and max(len(alone.encode(str(text)).ids) for text in texts) == most
    alone.post_processor = processors.TemplateProcessing(
        single="red red $A blue blue", special_tokens=[("red", 0), ("blue", 1)]
    )
    with pytest.raises(ExportError, match=rf"a text has {most} tokens at most .* it has 5; expected"):
        draw_samples(image, {"max_tokens": most, "captions": " "}, alone)
