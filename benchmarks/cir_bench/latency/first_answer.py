"""A fresh process that answers twice and says how long each step took; started by `cold_start`."""

import json
import sys
import time
from typing import Any


def main() -> None:
    """See the top of this file: what to ask is one JSON object, the argument.

    What runs the graphs is imported by the SDK, as in any program of its users: it reads files meanwhile.
    """
    started = time.perf_counter()
    arguments = json.loads(sys.argv[1])
    import numpy as np

    libraries = time.perf_counter()
    from cir_infer import Engine, Searcher

    imported = time.perf_counter()
    engine = Engine(arguments["bundle"], arguments["device"])
    bundle = time.perf_counter()
    searcher = Searcher(engine, arguments["gallery"])
    opened = time.perf_counter()
    image: Any = arguments["image"]
    if image is not None and image.endswith(".npy"):
        image = np.load(image)
    searcher.query(image, arguments["text"], arguments["k"])
    first = time.perf_counter()
    searcher.query(image, arguments["text"], arguments["k"])
    second = time.perf_counter()
    steps = {
        "libraries": libraries - started,
        "imports": imported - libraries,
        "bundle": bundle - imported,
        "gallery": opened - bundle,
        "first": first - opened,
        "second": second - first,
    }
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
