"""What keeps others out of the way of the GPU: the gate when a program ends, the collector in captures."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress

import pytest

from cir_infer.errors import DeviceError
from cir_infer.gpu import gate as gate_module
from cir_infer.gpu.gate import Gate
from cir_infer.processes.collector import collector_paused
from tests.gallery.interrupts import Bomb, Interrupt
from tests.processes.forking import exit_code_of_fork


def in_thread(gate: Gate, inside: threading.Event, go: threading.Event) -> tuple[threading.Thread, list[str]]:
    said: list[str] = []

    def run() -> None:
        gate.enter()
        inside.set()
        go.wait()
        gate.enter()  # who is inside may go on
        gate.leave()
        said.append("left")
        gate.leave()
        try:
            gate.enter()
        except DeviceError as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, said


def test_closing_waits_for_those_inside_and_lets_no_others_in() -> None:
    gate, inside, go = Gate(), threading.Event(), threading.Event()
    thread, said = in_thread(gate, inside, go)
    inside.wait()
    threading.Timer(0.05, go.set).start()
    gate.close()
    assert said[:1] == ["left"]
    thread.join()
    assert "the program is ending" in said[1]
    gate.enter()  # finalizers of the thread that closed it
    gate.leave()


def test_who_stays_inside_does_not_keep_the_program_from_ending() -> None:
    gate, inside, go = Gate(), threading.Event(), threading.Event()
    thread, said = in_thread(gate, inside, go)
    inside.wait()
    gate.close(patience=0.01)
    assert said == []
    go.set()
    thread.join()


def test_it_may_be_closed_from_inside() -> None:
    gate = Gate()
    gate.enter()
    gate.close(patience=60)
    gate.leave()


def test_interrupts_do_not_lock_others_out() -> None:
    def enter_and_leave(gate: Gate, at: int) -> Bomb:
        """Interrupted before one instruction of the gate's."""

        def both() -> None:
            gate.enter()
            gate.leave()

        bomb = Bomb(at, only=(gate_module.__file__,))
        bomb(both)
        return bomb

    count = enter_and_leave(Gate(), 0).count
    assert count > 20
    for at in range(1, count + 1):
        gate = Gate()
        with pytest.raises(Interrupt):
            enter_and_leave(gate, at)
        thread = threading.Thread(target=enter_and_leave, args=(gate, 0), daemon=True)
        thread.start()
        thread.join(120)
        assert not thread.is_alive(), f"interrupted before instruction {at}"
        gate.close(patience=60)  # who was interrupted closes it: nobody else is inside


def test_the_collector_is_still_until_the_last_one_leaves() -> None:
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()


def test_a_forked_child_of_a_thread_that_captures_has_its_collector() -> None:
    with collector_paused():
        assert not gc.isenabled()
        assert exit_code_of_fork(lambda: int(not gc.isenabled())) == 0
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_interrupt_anywhere_in_a_pause_does_not_keep_the_collector_still() -> None:
    def pause() -> None:
        with collector_paused():
            pass

    number, fired = 0, True
    while fired:
        number += 1
        bomb = Bomb(number, only=("collector.py", "turns.py"))
        with suppress(Interrupt):
            bomb(pause)
        fired = bomb.fired
        pause()
        assert gc.isenabled()
    assert number > 40
