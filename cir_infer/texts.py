"""Where `cir_infer.inputs.texts` was at first: the same names, for programs written then."""

from cir_infer.inputs.texts import *  # noqa: F403
