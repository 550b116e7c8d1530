"""What is kept of one test's graphs is none of another's: only tests of it keep any."""

import os

os.environ["CIR_GRAPH_CACHE"] = "off"
