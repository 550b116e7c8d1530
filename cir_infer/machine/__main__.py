"""`python3 -m cir_infer.machine`: the doctor where no command is installed, e.g. in a copy of the sources."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cir_infer.console.common import CirParser, run_command
from cir_infer.machine import command


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """As `cir-bench doctor`."""
    parser = CirParser("python3 -m cir_infer.machine", command.__doc__ or "", "python3 -m cir_infer.machine")
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.argv[0] = "cir_infer.machine"  # by which name it complains
    sys.exit(main())
