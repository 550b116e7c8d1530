"""What reading a pickle may cost, known from its opcodes before any of them is carried out.

An unpickler that calls nothing is safe in what it does and unbounded in what it takes: an index makes a
table of gigabytes, numbers that collide make one table of them take hours, tuples nested deep end the
process when they are hashed. `check_pickle` follows the opcodes without building anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

__all__ = ["check_pickle"]

_MOST_DEPTH = 200
"""Tuples and sets inside one another: hashing goes into them without looking at the stack."""

_MOST_ODD = 1000
"""Keys that are no text and no small number: Python does not scatter the others."""

_LONGEST_NUMBER = 64
_SMALL = 1 << 31

_KEYED = {"SETITEM": 1, "SETITEMS": 1, "DICT": 1, "ADDITEMS": 0, "FROZENSET": 0}
"""Opcodes that hash: whether values stand between the keys."""

_HASHED_TOGETHER = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")


class _Cell:
    """A value that the unpickler will have on its stack.

    Attributes:
        depth: tuples and sets inside one another.
        odd: values in it, however deep, that Python does not scatter when it hashes them.
        number: it is a small number, which alone is scattered well enough and in a tuple is not.
        odd_keys: keys of a table or set that are odd.
    """

    __slots__ = ("depth", "number", "odd", "odd_keys")

    def __init__(self, depth: int = 0, odd: int = 0, number: bool = False) -> None:
        self.depth = depth
        self.odd = odd
        self.number = number
        self.odd_keys = 0


_PLAIN, _NUMBER, _ODD = _Cell(), _Cell(number=True), _Cell(odd=1)
"""Values that hold no others share their cells."""


def check_pickle(file: IO[bytes], pickles: int = 1, most: int = 1_000_000) -> None:
    """Refuse a pickle that would take more than a small multiple of its own size.

    Args:
        file: at the beginning of the pickle; where it stands afterwards is left open.
        pickles: how many stand one after the other.
        most: opcodes of all of them. Each takes some microseconds, and at most some 150 bytes.

    Raises:
        ValueError: it is refused, no pickle, or cut short.
    """
    left = most
    for _ in range(pickles):
        try:
            left -= _follow(_opcodes(file), left)
        except (IndexError, OverflowError, EOFError, UnicodeError) as error:
            raise ValueError(f"it is no pickle, or was cut short ({error})") from error


def _opcodes(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    import pickletools  # a query has no use for it

    for opcode, argument, _ in pickletools.genops(file):
        yield opcode, argument


def _follow(opcodes: Iterator[tuple[Any, Any]], most: int) -> int:
    """Carries the opcodes out on cells; how many there were."""
    stack: list[_Cell | None] = []  # None is a mark
    memo: dict[int, _Cell] = {}
    count = 0
    for opcode, argument in opcodes:
        name = opcode.name
        count += 1
        if count > most:
            raise ValueError(f"it has more than {most:,} steps, more than any file of its kind")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else int(argument)
            if index > count:
                raise ValueError(f"it numbers value {index:,} after {count:,} steps")
            memo[index] = _top(stack)
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            if int(argument) not in memo:
                raise ValueError(f"it refers to value {argument}, which it does not have")
            stack.append(memo[int(argument)])
            continue
        if name == "MARK":
            stack.append(None)
            continue
        if name == "DUP":
            stack.append(_top(stack))
            continue
        taken = _taken(opcode, stack)
        if name in _KEYED:
            keys = taken[:: 2 if _KEYED[name] else 1] if name != "SETITEM" else taken[:1]
            _check_keys(keys, _top(stack) if name in _FILLED else _Cell())
        if name in _FILLED:
            _fill(_top(stack), taken)
            continue
        for _ in opcode.stack_after:
            stack.append(_made(name, argument, taken))
        if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ") and _top(stack).odd > 10 * _MOST_ODD:
            raise ValueError("it builds an object of more numbers than any file of its kind has")
    return count


def _top(stack: list[_Cell | None]) -> _Cell:
    found = stack[-1]
    if found is None:
        raise ValueError("it is no pickle: a mark stands where a value should")
    return found


def _taken(opcode: Any, stack: list[_Cell | None]) -> list[_Cell]:
    """What an opcode takes from the stack; what it fills stays there."""
    before = [kind.name for kind in opcode.stack_before]
    fills = opcode.name in _FILLED
    if "mark" in before:
        taken: list[_Cell] = []
        while (cell := stack.pop()) is not None:
            taken.append(cell)
        rest = before.index("mark") - fills
    else:
        taken, rest = [], len(before) - fills
    for _ in range(rest):
        cell = stack.pop()
        if cell is not None:
            taken.append(cell)
        elif opcode.name != "POP":
            raise ValueError("it is no pickle: a mark stands where a value should")
    taken.reverse()
    return taken


def _made(name: str, argument: Any, taken: list[_Cell]) -> _Cell:
    if name in _NUMBERS:
        if isinstance(argument, int) and argument.bit_length() > 8 * _LONGEST_NUMBER:
            raise ValueError(f"it holds a number of {argument.bit_length():,} bits")
        return _NUMBER if -_SMALL < argument < _SMALL else _ODD
    if name in ("FLOAT", "BINFLOAT"):
        return _ODD
    if not taken and not name.startswith("EMPTY") and name not in ("LIST", "DICT", "TUPLE"):
        return _NUMBER if name in ("NONE", "NEWTRUE", "NEWFALSE") else _PLAIN
    depth = max((cell.depth for cell in taken), default=0)
    if name in _HASHED_TOGETHER:
        depth += 1
        if depth > _MOST_DEPTH:
            raise ValueError(f"it nests tuples more than {_MOST_DEPTH} deep")
    odd = sum(cell.odd for cell in taken)
    if name in _HASHED_TOGETHER:
        odd += any(cell.number for cell in taken)
    return _Cell(depth, min(odd, 1 << 40))


def _check_keys(keys: list[_Cell], holder: _Cell) -> None:
    holder.odd_keys += sum(1 for key in keys if key.odd)
    if holder.odd_keys > _MOST_ODD:
        raise ValueError(f"it holds a table of {holder.odd_keys:,} keys that are no text")


def _fill(holder: _Cell, taken: list[_Cell]) -> None:
    if holder in (_PLAIN, _NUMBER, _ODD):
        return  # a class or a value that cannot be filled, as the unpickler will say
    holder.depth = max(holder.depth, *(cell.depth for cell in taken), 0)
    holder.odd = min(holder.odd + sum(cell.odd for cell in taken), 1 << 40)
