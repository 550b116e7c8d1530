"""Models by name on the Hugging Face Hub, where `huggingface_hub` is installed. Never code, only data."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cir_infer.errors import CheckpointError, shown
from cir_infer.extras import install_hint, is_installed

__all__ = ["fetch", "is_hub_name"]

_FETCHED = ("*.json", "model*.safetensors", "open_clip_model*.safetensors", "README.md")
"""What a folder is read from. Without safetensors nothing is fetched but small files."""

_FILES = {".bin", ".cir", ".ckpt", ".json", ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".zip"}


def is_hub_name(text: str) -> bool:
    """Whether this is OWNER/NAME, and no path of this machine."""
    return (
        re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None
        and not Path(text).exists()
        and not Path(text).parent.is_dir()
        and Path(text).suffix.lower() not in _FILES
    )


def fetch(name: str) -> Path:
    """The folder of a model on the Hub; what was fetched before is taken from its cache.

    Raises:
        CheckpointError: `huggingface_hub` is not installed, the network or the model is not there; the
            message has the command that downloads it elsewhere.
    """
    by_hand = f"download it where there is a network, `hf download {name} --local-dir {Path(name).name}`"
    if not is_installed("huggingface_hub"):
        raise CheckpointError(
            f"{name} is no file or folder here, and to fetch it by name takes "
            f"{install_hint('huggingface_hub')}; "
            f"or {by_hand}, and give the folder"
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))
    except Exception as error:  # of its own, of HTTP and of the system
        raise CheckpointError(
            f"{name} is no file or folder here, and could not be fetched from the Hugging Face Hub "
            f"({shown(error)}); {by_hand}, and give the folder"
        ) from error
