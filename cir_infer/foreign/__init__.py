"""What strangers' files may cost, known before they are read: pickles and zip archives."""

from cir_infer.foreign.archives import checked_members, opened_archive
from cir_infer.foreign.pickles import check_pickle

__all__ = ["check_pickle", "checked_members", "opened_archive"]
