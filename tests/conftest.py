"""No test sees what another has kept of its graphs, and Ctrl-C ends what tests begin."""

import os
import signal

os.environ["CIR_GRAPH_CACHE"] = "off"
# Ignored in what a shell begins in the background, and in all that it begins.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
