"""Something done in a forked child, which must come back."""

import os
import signal
import traceback
from collections.abc import Callable

from cir_infer.errors import CirError


def exit_code_of_fork(work: Callable[[], int], patience: int = 60) -> int:
    """What `work` returns in a forked child; 99 where it raises, minus the signal where it is killed.

    A child that hangs is ended by an alarm, whose default is to kill.
    """
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(patience)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refused_in_child(use: Callable[[], object]) -> int:
    """0 where what a child inherited says that it cannot be used there, 1 where it is used."""
    try:
        use()
    except CirError as error:
        return 0 if "forked" in str(error) else 2
    return 1


class Child:
    """A forked child that lives until it is let go."""

    def __init__(self) -> None:
        begun, self._go = os.pipe(), os.pipe()
        self._process = os.fork()
        if not self._process:
            os.close(self._go[1])
            os.write(begun[1], b"!")
            os.read(self._go[0], 1)
            os._exit(0)
        os.close(self._go[0])
        assert os.read(begun[0], 1) == b"!"
        os.close(begun[0])
        os.close(begun[1])

    def let_go(self) -> None:
        os.close(self._go[1])
        os.waitpid(self._process, 0)
