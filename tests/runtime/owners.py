"""Files and folders of another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["belongs_to_another"]

_ANOTHER = 54_321


def belongs_to_another(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Give it away where this user may, who is root; else this process believes that it is another user's."""
    if os.geteuid() == 0:
        os.chown(path, _ANOTHER, -1)
    else:
        patch.setattr(os, "geteuid", lambda: _ANOTHER)
