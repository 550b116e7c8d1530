"""Where `cir_infer.inputs.images` was at first: the same names, for programs written then."""

from cir_infer.inputs.images import *  # noqa: F403
