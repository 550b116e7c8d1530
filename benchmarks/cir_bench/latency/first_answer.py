"""A fresh process that answers twice and says how long each step took; started by `cold_start`."""

import json
import sys
import time
from typing import Any


def main() -> None:
    """See the top of this file: what to ask is one JSON object, the argument."""
    started = time.perf_counter()
    arguments = json.loads(sys.argv[1])
    import cir_infer.engine  # noqa: F401
    from cir_infer import Searcher

    imported = time.perf_counter()
    searcher = Searcher(arguments["bundle"], arguments["gallery"], arguments["device"])
    opened = time.perf_counter()
    image: Any = arguments["image"]
    if image is not None and image.endswith(".npy"):
        import numpy as np

        image = np.load(image)
    searcher.query(image, arguments["text"], arguments["k"])
    first = time.perf_counter()
    searcher.query(image, arguments["text"], arguments["k"])
    second = time.perf_counter()
    steps = {"imports": imported - started, "open": opened - imported, "first": first - opened}
    print(json.dumps({**steps, "second": second - first}))


if __name__ == "__main__":
    main()
