"""Texts as tokens: joining, limits, and every text a user may type."""

from __future__ import annotations

import itertools
import logging
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cir_infer import Engine
from cir_infer.bundle.manifest import TextInput
from cir_infer.errors import BundleError, TextError, UsageError
from cir_infer.inputs import unknown_words
from cir_infer.inputs.texts import MAX_CHARACTERS, TextReader
from cir_infer.inputs.unknown_words import UNSAID
from tests.bundles import SPECIALS, WORDS, tokenizer_json, write_tiny_bundle
from tests.gallery.interrupts import Bomb, Interrupt

PAD, START, AND, END, UNK = range(5)
ID = {word: len(SPECIALS) + i for i, word in enumerate(WORDS)}


def reader(captions: str = "pair", max_tokens: int = 64, unk_id: int | None = UNK) -> TextReader:
    return TextReader(tokenizer_json(), TextInput(PAD, unk_id, max_tokens, captions))


def ids(text: object, captions: str = "pair") -> list[int]:
    tokens = reader(captions).read([text])  # type: ignore[list-item]
    assert tokens.ids.shape == (1, tokens.lengths[0])
    return tokens.ids[0].tolist()


def test_one_text_and_a_pair() -> None:
    assert ids("is red") == [START, ID["is"], ID["red"], END]
    pair = [START, ID["is"], ID["red"], AND, ID["longer"], END]
    assert ids(["is red", "longer"]) == pair
    assert ids(["is red"]) == ids("is red")
    assert ids(("is red", "")) == [START, ID["is"], ID["red"], AND, END]


def test_texts_of_a_fixed_length_are_filled_up_to_it() -> None:
    spec = TextInput(PAD, UNK, 9, " ", fixed_length=True)
    tokens = TextReader(tokenizer_json(), spec).read(["is red", "red"])
    assert tokens.ids.shape == (2, 9) and tokens.lengths.tolist() == [4, 3]
    assert tokens.ids[1].tolist() == [START, ID["red"], END, *[PAD] * 6]


class Wish(str, Enum):
    RED = "is red"
    LONGER = "longer"


def test_a_text_enum_is_its_text_and_not_its_name() -> None:
    assert ids(Wish.RED) == ids(np.str_("is red")) == ids("is red")
    assert ids([Wish.RED, Wish.LONGER]) == ids(["is red", "longer"])


@pytest.mark.parametrize("dtype", [None, object])
def test_an_array_of_captions_is_a_list_of_them(dtype: object) -> None:
    assert ids(np.array(["is red", "longer"], dtype)) == ids(["is red", "longer"])
    with pytest.raises(TextError, match="a string or a list"):
        ids(np.array([["is red"]], dtype))
    with pytest.raises(TextError, match="a string or a list"):
        ids(np.arange(2))


@pytest.mark.parametrize("captions", ["pair", "and:clip4cir"])
def test_a_third_caption_is_refused_where_nobody_would_read_it(captions: str) -> None:
    with pytest.raises(TextError, match="3 captions"):
        ids(["is red", "longer", "is a third caption that nobody reads"], captions)


def test_joined_captions() -> None:
    assert ids(["is red", "longer", "blue"], " and ") == ids("is red and longer and blue")


def test_clip4cirs_sentence() -> None:
    words = {"Is": 0, "is": 1, "red": 2, "and": 3, "longer": 4, "red.": 5, ".": 6, "?": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    clip = TextReader(tokenizer.to_str().encode(), TextInput(0, None, 77, "and:clip4cir"))
    assert clip.read([["is red.", "longer? "]]).ids.tolist() == [[0, 2, 3, 4]]
    assert clip.read(["is red."]).ids.tolist() == [[1, 5]], "one caption is left as it is"


def test_a_batch_is_padded_to_its_longest() -> None:
    tokens = reader().read(["red", "is more red", "blue"])
    assert tokens.lengths.tolist() == [3, 5, 3]
    assert tokens.ids.tolist()[0] == [START, ID["red"], END, PAD, PAD]
    assert str(tokens.ids.dtype) == str(tokens.lengths.dtype) == "int32"
    assert reader().read([]).ids.shape == (0, 0)


def test_words_are_cleaned_inside_the_tokenizer() -> None:
    assert ids("  Is-RED!!  ") == ids("is red")


@pytest.mark.parametrize("text", ["", "  \n\t", [], ["", ""], ()])
def test_empty(text: object) -> None:
    with pytest.raises(TextError, match="empty"):
        ids(text)


@pytest.mark.parametrize("text", ["1234 !?", "深い赤のドレス", "красное платье", "🙂", "-"])
def test_nothing_that_the_model_can_read(text: str) -> None:
    with pytest.raises(TextError, match="can be read"):
        ids(text)


@pytest.mark.parametrize("text", [None, 3, b"is red", ["is red", None], [["is red"]], {"a": 1}])
def test_not_a_text(text: object) -> None:
    with pytest.raises(TextError, match="a string or a list of captions"):
        ids(text)


def test_a_bare_string_is_not_a_batch() -> None:
    with pytest.raises(UsageError, match="list of texts"):
        reader().read("is red")


def test_too_long() -> None:
    assert reader(max_tokens=12).read(["red " * 10]).lengths.tolist() == [12]
    with pytest.raises(TextError, match=r"13 tokens.*at most 12"):
        reader(max_tokens=12).read(["red " * 11])
    with pytest.raises(TextError, match="1,002 tokens"):
        reader(max_tokens=512).read(["red " * 1000])
    with pytest.raises(TextError, match="characters"):
        reader().read(["a" * (MAX_CHARACTERS + 1)])


def test_unknown_words_are_named_once_for_each_text(caplog: pytest.LogCaptureFixture) -> None:
    one = reader()
    with caplog.at_level(logging.WARNING, "cir_infer"):
        for _ in range(3):
            assert one.read(["is Chartreuse", "is red"]).ids[0].tolist() == [START, ID["is"], UNK, END]
        assert [record.getMessage() for record in caplog.records] == [
            "not every word of the text 'is Chartreuse' is in the model's vocabulary of "
            f"{len(SPECIALS) + len(WORDS)} tokens; unknown words count as one and the same: 'Chartreuse'"
        ]
        caplog.clear()
        assert ids("chartreuse paisley") == [START, UNK, UNK, END]
    assert [record.getMessage() for record in caplog.records] == [
        "no word of the text 'chartreuse paisley' is in the model's vocabulary of "
        f"{len(SPECIALS) + len(WORDS)} tokens; "
        "unknown words count as one and the same: 'chartreuse', 'paisley'"
    ]


def test_unknown_words_are_returned_as_they_were_typed() -> None:
    assert reader().read_one("is red").unknown == ()
    assert reader().read_one("is Chartreuse, and more Chartreuse").unknown == ("Chartreuse",)
    assert reader().read_one(["is paisley", "more taupe"]).unknown == ("paisley", "taupe")
    assert reader(" and ").read_one(["is paisley", "more taupe"]).unknown == ("paisley", "taupe")
    assert reader(unk_id=None).read_one("is paisley").unknown == ()


def test_unknown_words_count_as_one_and_the_same(tmp_path: Path) -> None:
    """What the log says of them is what they do."""
    with Engine(write_tiny_bundle(tmp_path / "a.cir"), device="cpu") as engine:
        one, other, left_out = engine.encode_texts(["is paisley red", "is taupe red", "is red"])
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - left_out).max() > 1e-3


def test_what_a_tokenizer_without_an_unknown_word_cannot_spell_is_left_out() -> None:
    spelling = Tokenizer(models.BPE({"r": 1, "e": 2, "d": 3}, []))
    one = TextReader(spelling.to_str().encode(), TextInput(0, None, 64, " "))
    assert one.read_one("r\u00e9ed") == one.read_one("red") == ([1, 2, 3], ())
    with pytest.raises(TextError, match="nothing in the text 'zzz'"):
        one.read_one("zzz")


def test_what_was_said_is_not_kept_for_ever() -> None:
    one = reader()
    for number in range(3 * unknown_words._SAID):
        one.read_one(f"red {'x' * (number % 7)}{number}")
    assert len(one._unknown_words._said) <= unknown_words._SAID


def test_texts_read_together_are_news_of_one_line(caplog: pytest.LogCaptureFixture) -> None:
    one = reader()
    asked = ["is red", "is Chartreuse", ["is paisley", "taupe"], "paisley", "paisley"]
    with caplog.at_level(logging.WARNING, "cir_infer"):
        one.read(asked)
        one.read(asked)  # nothing new
        one.read([*asked, "is mauve"])
    known = f"in the model's vocabulary of {len(SPECIALS) + len(WORDS)} tokens"
    assert [record.getMessage() for record in caplog.records] == [
        f"4 of 5 texts have words that are not {known}, 2 of them no other; "
        "unknown words count as one and the same: 'paisley' (3 times), 'Chartreuse', 'taupe'",
        f"5 of 6 texts have words that are not {known}, 2 of them no other; "
        "unknown words count as one and the same: 'paisley' (3 times), 'Chartreuse', 'taupe', 'mauve'",
    ]


def test_one_line_names_few_of_many_words(caplog: pytest.LogCaptureFixture) -> None:
    words = [
        "odd" + "".join(letters) for letters in itertools.islice(itertools.product("abcde", repeat=4), 600)
    ]
    with caplog.at_level(logging.WARNING, "cir_infer"):
        reader(max_tokens=2000).read([" ".join(words)])
        reader().read([f"is {word}" for word in words])
    alone, together = (record.getMessage() for record in caplog.records)
    assert alone.startswith("no word of the text") and alone.endswith("'oddaade' and 580 more")
    assert together.startswith("600 of 600 texts") and together.endswith("'oddaade' and 580 more")


def test_texts_that_try_a_model_are_no_news_and_the_next_are(caplog: pytest.LogCaptureFixture) -> None:
    one = reader()
    with caplog.at_level(logging.WARNING, "cir_infer"):
        assert one.read_one("is paisley", UNSAID).unknown == ("paisley",)
        one.read(["is taupe", "is mauve"], UNSAID)
        assert caplog.records == []
        one.read_one("is paisley")
    assert "the same: 'paisley'" in caplog.text


def test_what_was_found_is_said_though_a_later_text_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cir_infer"), pytest.raises(TextError):
        reader().read(["is paisley", ""])
    assert "the same: 'paisley'" in caplog.text


def test_an_interrupt_leaves_no_later_text_unsaid(caplog: pytest.LogCaptureFixture) -> None:
    def read(at: int) -> Bomb:
        bomb = Bomb(at, only=(unknown_words.__file__,))
        try:
            bomb(lambda: reader().read(["is paisley", "is taupe"]))
        except Interrupt as error:
            kept.append(error)
        return bomb

    kept: list[Interrupt] = []  # as a notebook keeps the last traceback
    read(0)
    count = read(0).count
    assert count > 100
    with caplog.at_level(logging.WARNING, "cir_infer"):
        for at in range(1, count + 1):
            read(at)
            caplog.clear()
            reader().read_one("is mauve")
            assert "the same: 'mauve'" in caplog.text, at


def test_the_domain_is_named_with_what_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    TextReader(tokenizer_json(), TextInput(PAD, UNK, 64), "rendered\nscenes").read(["paisley"])
    assert "tokens about 'rendered\\nscenes'" in caplog.text


def test_words_are_counted_without_special_tokens_where_the_bundle_counts_them(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    every = f"{len(SPECIALS) + len(WORDS)} tokens"
    for said, known in ((len(WORDS), f"{len(WORDS)} words"), (True, every), (10**9, every), ("7", every)):
        caplog.clear()
        stated = {"vocabulary": {"kind": "words", "known": said}}
        with Engine(write_tiny_bundle(tmp_path / "a.cir", provenance=stated), device="cpu") as engine:
            engine.encode_texts(["is paisley"])
        assert f"in the model's vocabulary of {known};" in caplog.text, said


def test_the_vocabulary_is_counted() -> None:
    assert reader().vocabulary == len(SPECIALS) + len(WORDS)


def test_no_text_is_named_in_full_however_long() -> None:
    with pytest.raises(TextError) as caught:
        reader().read(["red " * 1000])
    assert len(str(caught.value)) < 250


def test_a_lone_surrogate() -> None:
    with pytest.raises(TextError, match="not valid Unicode"):
        ids("is \ud800 red")


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff", b'{"version": "1.0"}', b"[" * 1000])
def test_a_broken_tokenizer(junk: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TextReader(junk, TextInput(0, None, 8))


def test_truncation_and_padding_inside_the_file_are_ignored() -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    plain = TextReader(tokenizer.to_str().encode(), TextInput(PAD, UNK, 64))
    assert plain.read(["is more red"]).ids.tolist() == reader().read(["is more red"]).ids.tolist()


@settings(max_examples=200)
@given(text=st.text(max_size=200) | st.lists(st.text(max_size=50), max_size=4))
def test_any_text_is_tokens_or_a_text_error(text: str | list[str]) -> None:
    try:
        tokens = reader().read([text])
    except TextError:
        return
    assert 3 <= tokens.lengths[0] <= 64
    assert set(tokens.ids[0].tolist()) <= set(range(len(SPECIALS) + len(WORDS)))
