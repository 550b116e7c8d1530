"""Table 7 of the ARTEMIS paper, replayed: what scoring adds to encoding, the authors' way and ours."""
