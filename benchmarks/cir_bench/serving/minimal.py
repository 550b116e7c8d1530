"""A handler as people write it: FastAPI, the model in PyTorch, the scores in NumPy, one query at a time.

python -m cir_bench.serving.minimal model.pt shop.gallery 2
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from cir_bench.serving.listening import serve

__all__ = ["make_handler"]


def make_handler(model: str, gallery: str, threads: int) -> Any:
    """The application.

    Args:
        model: a model.pt of cir-train, of the system of the gallery's bundle.
        gallery: its path.
        threads: of PyTorch.
    """
    import torch
    from fastapi import FastAPI, Request

    from cir_export.model_file import load_model
    from cir_export.preprocessing import check_inputs
    from cir_infer.gallery import Gallery
    from cir_infer.inputs.preprocess import preprocess

    torch.set_num_threads(threads)
    trained = load_model(model)
    network, spec = trained.model.eval(), check_inputs(trained.image, trained.text)
    with Gallery.open(gallery, read_only=True) as opened:
        snapshot = opened.snapshot()
        numbers = snapshot.live_rows()
        rows = snapshot.rows.take(numbers)
        ids = snapshot.ids(numbers)
    by_id = {item: number for number, item in enumerate(ids)}

    def search(reference: Any, text: str, k: int) -> dict[str, Any]:
        tokens = trained.tokenizer.encode(text).ids
        with torch.no_grad():
            words = network.encode_text(torch.tensor([tokens]), torch.tensor([len(tokens)]))
            terms = network.compose(reference, words)
        scores = np.zeros(len(rows), np.float32)
        numerators = terms.numerators[0].numpy()
        weights = None if terms.weights is None else terms.weights[0].numpy()
        for term in range(len(numerators)):
            if weights is None:
                scores += rows @ numerators[term]
                continue
            attention = np.sqrt(weights[term])
            weighed = rows * attention
            weighed /= np.linalg.norm(weighed, axis=1, keepdims=True)
            scores += weighed @ (numerators[term] / attention)
        best = np.argsort(-scores)[:k]
        return {"hits": [{"id": ids[number], "score": float(scores[number])} for number in best]}

    app = FastAPI()

    async def handle(request: Request) -> dict[str, Any]:
        if request.headers["content-type"].startswith("application/json"):
            asked = await request.json()
            row = torch.from_numpy(rows[by_id[asked["item"]]][None].astype(np.float32))
            return search(row, asked["text"], asked["k"])
        form: Any = await request.form()
        picture = preprocess(await form["image"].read(), spec)
        with torch.no_grad():
            reference = network.encode_reference(torch.from_numpy(picture[None]))
        return search(reference, form["text"], int(form["k"]))

    # Annotations are texts here, which FastAPI could not read of a name that only this function knows.
    handle.__annotations__["request"] = Request
    app.add_api_route("/v1/search", handle, methods=["POST"], response_model=None)
    return app


def main(model: str, gallery: str, threads: str) -> None:
    """Serve."""
    serve(make_handler(model, gallery, int(threads)), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
