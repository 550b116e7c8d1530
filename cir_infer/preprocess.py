"""Where `cir_infer.inputs.preprocess` was at first: the same names, for programs written then."""

from cir_infer.inputs.preprocess import *  # noqa: F403
