"""What rests on something of its process that no copy would have: it is neither copied nor pickled."""

from __future__ import annotations

from typing import Any, ClassVar

from cir_infer.errors import CirError, UsageError

__all__ = ["Staying"]


class Staying:
    """Base of what cannot be copied or pickled, and says so.

    Attributes:
        stays: what it is, and what to do instead, of the message.
        refusal: the type of the error.
    """

    stays: ClassVar[tuple[str, str]]
    refusal: ClassVar[type[CirError]] = UsageError

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuses: what is asked for is of `copy` or `pickle`.

        Raises:
            CirError: always, of the type `refusal`.
        """
        what, instead = self.stays
        raise self.refusal(f"{what} cannot be copied or pickled; {instead}")
