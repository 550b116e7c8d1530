"""Where `cir_infer.bundle.manifest` was at first: the same names, for programs written then."""

from cir_infer.bundle.manifest import *  # noqa: F403
