"""The recurrent kernel against ONNX' formulas in float64; needs NumPy and a device, real or emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.gpu.device import Device
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.text_graph import RecurrentText

Floats = npt.NDArray[np.float64]
GATES = {"gru": 3, "lstm": 4}


def random_text(
    kind: str,
    directions: int,
    hidden: int,
    width: int,
    over_time: bool = False,
    out: int | None = None,
    unit: bool = True,
    words: int = 50,
    seed: int = 0,
) -> RecurrentText:
    """An encoder with random weights of usual sizes."""
    random, gates = np.random.default_rng(seed), GATES[kind]

    def weights(*shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    last = directions * hidden
    return RecurrentText(
        kind,
        weights(words, width),
        weights(directions, gates, hidden, width, scale=width**-0.5),
        weights(directions, gates, hidden, hidden, scale=hidden**-0.5),
        weights(directions, gates, hidden, scale=0.3),
        weights(directions, hidden, scale=0.3) if kind == "gru" else None,
        over_time,
        None if out is None else weights(out, last, scale=last**-0.5),
        None if out is None else weights(out, scale=0.3),
        1e-20 if unit else None,
    )


def expected_text(text: RecurrentText, tokens: npt.NDArray[Any]) -> Floats:
    """One text, step by step."""
    pooled = []
    for direction in range(text.directions):
        from_input = text.input_weights[direction].astype(np.float64)
        from_state = text.recurrent_weights[direction].astype(np.float64)
        h = c = np.zeros(text.hidden)
        states = []
        for token in tokens if direction == 0 else tokens[::-1]:
            x = from_input @ text.words[token] + text.input_bias[direction]
            r = from_state @ h
            if text.candidate_bias is not None:
                update, reset = (sigmoid(x[gate] + r[gate]) for gate in (0, 1))
                candidate = np.tanh(x[2] + reset * (r[2] + text.candidate_bias[direction]))
                h = (1 - update) * candidate + update * h
            else:
                take, give, keep = (sigmoid(x[gate] + r[gate]) for gate in (0, 1, 2))
                c = keep * c + take * np.tanh(x[3] + r[3])
                h = give * np.tanh(c)
            states.append(h)
        pooled.append(np.max(states, 0) if text.over_time else h)
    value = np.concatenate(pooled)
    if text.projection is not None and text.projection_bias is not None:
        value = text.projection.astype(np.float64) @ value + text.projection_bias
    if text.least_square is not None:
        value = value / np.sqrt(max(value @ value, text.least_square))
    return value


def sigmoid(v: Floats) -> Floats:
    return 1 / (1 + np.exp(-v))


def random_feeds(text: RecurrentText, lengths: list[int], seed: int = 1) -> dict[str, npt.NDArray[np.int32]]:
    """Texts of these lengths."""
    tokens = np.random.default_rng(seed).integers(0, len(text.words), (len(lengths), max(lengths)))
    return {"tokens": tokens.astype(np.int32), "lengths": np.array(lengths, np.int32)}


def check_texts(device: Device, text: RecurrentText, lengths: list[int], again: int = 1) -> None:
    """The right embeddings, and the same bits each time."""
    encoder = RecurrentEncoder(text, device, max(lengths))
    feeds = random_feeds(text, lengths)
    found = encoder.run(feeds)["text"]
    for row, length in enumerate(lengths):
        expected = expected_text(text, feeds["tokens"][row, :length])
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-5, err_msg=f"{length} tokens")
    for _ in range(again):
        np.testing.assert_array_equal(encoder.run(feeds)["text"], found)
