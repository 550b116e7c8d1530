"""What strangers' files may cost, known before they are read: pickles, zip archives, JSON, texts."""

from cir_infer.foreign.archives import check_sums, checked_members, opened_archive
from cir_infer.foreign.files import has_file, lines_in, no_file, opened_file, text_of
from cir_infer.foreign.json_text import read_json, unique_names
from cir_infer.foreign.pickles import check_pickle

__all__ = [
    "check_pickle",
    "check_sums",
    "checked_members",
    "has_file",
    "lines_in",
    "no_file",
    "opened_archive",
    "opened_file",
    "read_json",
    "text_of",
    "unique_names",
]
