"""Keeps loggers to errors for a while, about what a user can do nothing about."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["UNKNOWN_WORDS", "quieter"]

UNKNOWN_WORDS = "cir_infer.inputs.texts"
"""Says which words a model does not know: news about a user's text, none about one that is made to try it."""


@contextmanager
def quieter(*names: str) -> Iterator[None]:
    """Only errors of the loggers of these names meanwhile; also decorates a function."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
