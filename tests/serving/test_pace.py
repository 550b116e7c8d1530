"""How many are let in, by how long answers take."""

from __future__ import annotations

from cir_infer.serving.batching import Pace


def test_fewer_are_let_in_where_refusing_makes_answers_slower() -> None:
    pace = Pace()
    assert pace.room(64) == 64  # nothing is known yet
    pace._usual, pace._spent, pace._count = 0.001, 2.0, 1000.0
    assert pace.room(64) == 64  # none was refused: these are slow by themselves
    storm(pace)
    assert pace.room(64) == 24  # which take three quarters of what 64 did
    pace._spent = 0.5
    assert pace.room(64) == 64
    pace._spent = 1e6
    assert (pace.room(64), pace.room(4)) == (8, 1)


def storm(pace: Pace) -> None:
    """Let it believe that many were refused just now."""
    pace.refused()
    pace._refusals = 10 * pace._count + 10


def test_what_is_usual_is_learned_while_refusals_are_few() -> None:
    pace = Pace()
    pace.begin()
    pace.answered(3)
    usual = pace._usual
    assert usual > 0
    storm(pace)
    pace._since -= 5.0
    pace.answered(1)
    assert pace._usual == usual
    assert pace.room(64) == 8
    pace._refused -= 2.0
    pace.answered(1)
    assert pace._usual > usual


def test_other_queries_that_take_longer_are_let_in_although_some_are_refused() -> None:
    """Items' queries for hours, then images': what is refused now and then does not make them slow."""
    pace = Pace()
    for _ in range(100):
        pace._since -= 0.001
        pace.answered(1)
    for _ in range(2000):
        pace._since -= 0.02
        pace.answered(1)
        pace._refusals *= 0.5  # one is refused for two that are answered
        pace.refused()
        assert pace.room(64) == 64
    assert pace._usual > 0.015
    # A storm is forgotten by what is answered, and by its end.
    storm(pace)
    pace._usual /= 100
    assert pace.room(64) == 8
    pace.answered(400)
    assert pace.room(64) == 64
