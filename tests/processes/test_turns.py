"""A turn is one thread's at a time, and nobody's once its call is gone, however that went."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cir_infer.processes.turns import Turn
from tests.gallery.interrupts import Bomb, Interrupt
from tests.processes.forking import exit_code_of_fork


@contextmanager
def at_it(turn: Turn) -> Iterator[None]:
    """Another thread has the turn during the block."""
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        begun.set()
        assert go_on.wait(60)

    thread = threading.Thread(target=turn.take, args=(slowly,))
    thread.start()
    assert begun.wait(60)
    yield
    go_on.set()
    thread.join()


def test_one_thread_at_a_time() -> None:
    turn, inside, most = Turn(), [0], [0]

    def work() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1

    threads = [threading.Thread(target=lambda: [turn.take(work) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and inside == [0]


def test_who_does_not_wait_leaves_it_to_the_one_whose_turn_it_is() -> None:
    turn, done = Turn(), list[str]()
    with at_it(turn):
        turn.take_if_free(lambda: done.append("while another was at it"))
    turn.take_if_free(lambda: done.append("after it"))
    assert done == ["after it"]


def test_an_interrupt_anywhere_leaves_the_turn_to_others() -> None:
    for taken in (lambda turn: turn.take(dict), lambda turn: turn.take_if_free(dict)):
        turn, number, fired = Turn(), 0, True
        while fired:
            number += 1
            bomb = Bomb(number, only=("turns.py",))
            with suppress(Interrupt):
                bomb(lambda: taken(turn))  # noqa: B023 - called at once
            fired = bomb.fired
            other = threading.Thread(target=turn.take, args=(dict,), daemon=True)
            other.start()
            other.join(60)
            assert not other.is_alive()
        assert number > 20


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    turn = Turn()
    with at_it(turn):
        assert exit_code_of_fork(lambda: int(turn.take(dict) != {})) == 0
