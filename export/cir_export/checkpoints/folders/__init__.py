"""Models as folders, the way Hugging Face's transformers and open_clip save them. No code of theirs runs."""

from cir_export.checkpoints.folders.loading import SYSTEMS, load_folder

__all__ = ["SYSTEMS", "load_folder"]
