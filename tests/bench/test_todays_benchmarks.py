"""CIRCO, GeneCIS, i-CIR and LaSCo in their published layouts; average precision; the worth of one half."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_bench.accuracy.measurement import measure_accuracy
from cir_bench.report.text import accuracy_text
from cir_eval.drift import drift_between
from cir_eval.evaluation import Options
from cir_eval.metrics import Outcome, judge, paraphrases, ranking_of, spread_of
from cir_eval.protocols import protocol
from cir_eval.protocols.contract import Query
from cir_infer import Engine
from cir_infer.errors import DatasetError
from tests.bench.layouts import picture, write_json
from tests.bundles import write_tiny_bundle
from tests.training.test_data_sets import fashioniq

WORDS = ("is red", "longer", "is blue")


def circo(root: Path) -> Path:
    for number in range(6):
        picture(root / f"COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg", number)
    images = [{"id": number} for number in (4, 1, 0, 5, 2, 3)]
    write_json(root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": images})
    asked = [
        {"id": 0, "reference_img_id": 1, "relative_caption": "is red", "shared_concept": "a shoe"},
        {"id": 1, "reference_img_id": 4, "relative_caption": "longer", "shared_concept": "a coat"},
    ]
    write_json(root / "annotations/test.json", asked)
    aspects = {"semantic_aspects": ["negation", "cardinality"]}
    answers = [
        {"target_img_id": 5, "gt_img_ids": [5, 2, 0], **aspects},
        {"target_img_id": 3, "gt_img_ids": [3]},
    ]
    write_json(root / "annotations/val.json", [{**a, **b} for a, b in zip(asked, answers, strict=True)])
    return root


def test_circo_has_several_targets_and_four_ways_to_ask(tmp_path: Path) -> None:
    circo(tmp_path)
    for name, text, excluded in (
        ("searle", "is red", False),
        ("covr", "is red", True),
        ("magiclens", "find a shoe but is red", False),
        ("concept", "find a shoe but is red", True),
    ):
        plan = protocol(f"circo/{name}")
        (part,) = plan.load(tmp_path, "val")
        query = part.queries[0]
        assert part.ids == ("4", "1", "0", "5", "2", "3")
        assert (query.reference, query.texts, query.correct.tolist()) == (1, (text,), [3, 4, 2])
        assert query.also["target"].tolist() == [3]
        assert query.aspects == ("negation", "cardinality") and part.queries[1].aspects == ()
        assert "mAP@10 (negation)" in judge(plan, query, np.arange(6)).values
        assert (1 in ranking_of(plan, query, np.arange(6))) is not excluded
    (part,) = protocol("circo").load(tmp_path, "test")
    assert not part.queries[0].correct.size
    write_json(tmp_path / "annotations/val.json", [{"id": "one"}])
    with pytest.raises(DatasetError, match="relative_caption"):
        protocol("circo").load(tmp_path, "val")
    one = {"id": 0, "relative_caption": "x", "shared_concept": "y", "semantic_aspects": [{}]}
    write_json(tmp_path / "annotations/val.json", [one])
    with pytest.raises(DatasetError, match="semantic_aspects is"):
        protocol("circo").load(tmp_path, "val")


@settings(max_examples=60)
@given(st.permutations(range(9)), st.sets(st.integers(0, 8), min_size=1), st.integers(1, 9))
def test_average_precision_is_the_sum_of_its_definition(order: list[int], correct: set[int], k: int) -> None:
    plan = protocol("circo/searle")
    query = Query("q", 0, ("x",), np.array(sorted(correct)))
    found = judge(plan, query, np.array(order)).values
    for at in plan.map_ks:
        hits = [row in correct for row in order[:at]]
        total = sum(sum(hits[: i + 1]) / (i + 1) for i in range(len(hits)) if hits[i])
        assert found[f"mAP@{at}"] == pytest.approx(total / min(len(correct), at))
    best = judge(plan, query, np.array([*sorted(correct), *sorted(set(range(9)) - correct)])).values
    assert all(best[f"mAP@{at}"] == pytest.approx(1) for at in plan.map_ks)


def test_genecis_ranks_the_images_of_a_template(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"val2017/{number:012d}.jpg", number)
    image = Image.new("RGB", (100, 60), "white")
    (tmp_path / "VG_100K_all").mkdir()
    image.save(tmp_path / "VG_100K_all/7.png")
    image.save(tmp_path / "VG_100K_all/7.jpg", quality=95)
    objects = [{"val_image_id": number} for number in range(4)]
    boxes = [
        {"image_id": 7, "instance_bbox": box} for box in ([10, 20, 20, 10], [80, 0, 30, 10], [0, 0, 5, 5])
    ]
    for task in ("focus_object", "change_object", "focus_attribute", "change_attribute"):
        images = objects if task.endswith("object") else boxes
        template = {"condition": "red", "reference": images[0], "target": images[1], "gallery": images[2:]}
        write_json(tmp_path / f"genecis/{task}.json", [template])
    plan = protocol("genecis")
    parts = {part.name: part for part in plan.load(tmp_path, "all")}
    (query,) = parts["focus_object"].queries
    assert (query.reference, query.correct.tolist()) == (0, [1])
    assert query.subset is not None and query.subset.tolist() == [1, 2, 3]
    assert judge(plan, query, np.array([0, 2, 1, 3])).values == {"R_sub@1": 0, "R_sub@2": 1, "R_sub@3": 1}
    crops = parts["change_attribute"].images
    # 0.7 of 20 x 10 on every side: from (-4, 13) to (44, 37), cut off at the left; black above and below.
    assert crops[0].shape == (44, 44, 3)
    assert not crops[0][:9].any() and crops[0][12:30].min() > 200
    assert crops[1].shape == (41, 41, 3), "cut off at the right and the top"
    assert parts["focus_object"].images[1] == tmp_path / "val2017/000000000001.jpg"
    for value in (float("nan"), float("inf"), 1e308, 10**400, True, "1"):
        for at in range(4):
            box = [10, 20, 20, 10]
            box[at] = value  # type: ignore[call-overload]
            odd = {"image_id": 7, "instance_bbox": box}
            template = {"condition": "red", "reference": odd, "target": odd, "gallery": [odd]}
            write_json(tmp_path / "genecis/change_attribute.json", [template])
            with pytest.raises(DatasetError, match=r"an image is .*; expected val_image_id"):
                plan.load(tmp_path, "all")


def icir(root: Path) -> Path:
    database = [
        ("a/0.jpg", "red", "cup"),
        ("a/1.jpg", "old", "cup"),
        ("b/2.jpg", "red", "car"),
        ("a/3.jpg", "", "cup"),
    ]
    asked = [("q/4.jpg", "red", "cup"), ("q/5.jpg", "old", "cup"), ("q/6.jpg", "red", "car")]
    for number, (path, _, _) in enumerate([*database, *asked]):
        picture(root / path, number)
    for name, lines in (("database", database), ("query", asked)):
        (root / f"{name}_files.csv").write_text("\n".join(",".join(line) for line in lines) + "\n")
    return root


def test_icir_has_a_database_an_instance_and_queries_from_outside(tmp_path: Path) -> None:
    plan = protocol("icir")
    cup, car = plan.load(icir(tmp_path), "all")
    assert (cup.name, cup.candidates, cup.ids[:3]) == ("cup", 3, ("a/0.jpg", "a/1.jpg", "a/3.jpg"))
    assert [(q.reference, q.correct.tolist()) for q in cup.queries] == [(3, [0]), (4, [1])]
    assert car.candidates == 1
    query = cup.queries[0]
    ranking = ranking_of(plan, query, np.array([3, 4, 1, 0, 2]), cup.candidates)
    assert ranking.tolist() == [1, 0, 2]
    assert judge(plan, query, ranking).values["mAP"] == pytest.approx(0.5)
    (tmp_path / "query_files.csv").write_text("only a path\n")
    with pytest.raises(DatasetError, match=r"query_files\.csv, line 1: expected path, text and instance"):
        plan.load(tmp_path, "all")
    (tmp_path / "query_files.csv").write_text(
        "q/4.jpg,red, but old,cup\n"
    )  # no instance is called " but old"
    with pytest.raises(DatasetError, match=r"query_files\.csv, line 1: expected path, text and instance"):
        plan.load(tmp_path, "all")


def test_lasco_has_the_gallery_of_its_list(tmp_path: Path) -> None:
    images = [[number, f"val2014/{number}.jpg"] for number in range(4)]
    write_json(tmp_path / "lasco_val_corpus.json", images)
    asked = {"qid": 5, "query-image": images[2], "query-text": "is red", "target-image": images[0]}
    write_json(tmp_path / "lasco_val.json", [asked])
    write_json(tmp_path / "lasco_train.json", [asked])
    (part,) = protocol("lasco").load(tmp_path, "val")
    assert len(part.ids) == 4 and (part.queries[0].reference, part.queries[0].correct.tolist()) == (2, [0])
    (part,) = protocol("lasco").load(tmp_path, "train")
    assert part.ids == ("val2014/2.jpg", "val2014/0.jpg")
    write_json(tmp_path / "lasco_val.json", [{**asked, "query-image": [1, "../../secret"]}])
    with pytest.raises(DatasetError, match="expected its number and its path"):
        protocol("lasco").load(tmp_path, "val")


def test_both_halves_stand_beside_the_whole(tmp_path: Path) -> None:
    circo(tmp_path / "data")
    with Engine(write_tiny_bundle(tmp_path / "tiny.cir"), device="cpu") as engine:
        options = Options(alone=True)
        measured = measure_accuracy(engine, protocol("circo/covr"), tmp_path / "data", "val", options)
        result = measured.result
        for name, gain in result["composition_gain"].items():
            halves = [result["alone"][half][name] for half in ("text", "image")]
            assert gain == pytest.approx(result["pooled"][name] - max(halves))
        # The picture alone is the order of the rows' cosines.
        (done,) = measured.evaluated
        rows = done.rows / np.linalg.norm(done.rows, axis=1, keepdims=True)
        for query, outcome in zip(done.part.queries, done.alone["image"], strict=True):
            order = np.argsort(-(rows @ rows[query.reference]), kind="stable")
            order = order[order != query.reference]
            assert outcome.values == judge(protocol("circo/covr"), query, order).values
        assert "composition gain" in accuracy_text(result)
        bare = measure_accuracy(engine, protocol("circo/covr"), tmp_path / "data", "val").result
        assert "alone" not in bare and bare["pooled"] == result["pooled"]


def test_rows_of_several_vectors_are_asked_by_halves_and_compared(tmp_path: Path) -> None:
    circo(tmp_path / "data")
    options = Options(alone=True)
    with Engine(write_tiny_bundle(tmp_path / "tokens.cir", "tokens"), device="cpu") as engine:
        measured = measure_accuracy(
            engine, protocol("circo/covr"), tmp_path / "data", "val", options, against=engine
        )
    drift = measured.result["drift"]["embedding_cosine"]
    assert drift == pytest.approx({"mean": 1, "worst": 1})
    (done,) = measured.evaluated
    assert done.rows.ndim == 3
    unit = done.rows / np.linalg.norm(done.rows, axis=2, keepdims=True)
    plan = protocol("circo/covr")
    for query, outcome in zip(done.part.queries, done.alone["image"], strict=True):
        scores = np.einsum("ad,nbd->nab", unit[query.reference], unit).max(2).sum(1)
        expected = judge(plan, query, ranking_of(plan, query, np.argsort(-scores, kind="stable")))
        assert outcome.values == expected.values
    other = [replace(done, rows=np.roll(done.rows, 1, axis=0))]
    flat = done.rows.reshape(len(done.rows), -1).astype(np.float64)
    turned = np.roll(flat, 1, axis=0)
    cosines = (flat * turned).sum(1) / np.linalg.norm(flat, axis=1) / np.linalg.norm(turned, axis=1)
    found = drift_between([done], other)["embedding_cosine"]
    assert found == pytest.approx({"mean": cosines.mean(), "worst": cosines.min()})


def test_wordings_of_one_query_are_compared() -> None:
    def query(
        key: str, text: str, reference: int, correct: list[int], subset: list[int] | None = None
    ) -> Query:
        among = None if subset is None else np.array(subset)
        return Query(key, reference, (text,), np.array(correct), subset=among)

    queries = [
        query("0", "is red", 0, [3, 1]),
        query("1", "in red", 0, [1, 3]),
        query("2", "is red", 0, [1, 3]),  # the same words once more
        query("3", "is red", 1, [1, 3]),
        query("4", "is blue", 0, [2]),
        query("5", "a red one", 0, [3, 1]),
        query("6", "x", 4, []),
        query("7", "y", 4, []),
        query("8", "the same shape", 5, [6], [6, 7]),
        query("9", "the same colour", 5, [6], [6, 8]),  # told from others: it asks for something else
        query("10", "alike in colour", 5, [6], [8, 6]),
    ]
    assert paraphrases(queries) == [[0, 1, 5], [9, 10]]
    outcomes = [Outcome(values, 1) for values in ({"R@1": 1.0}, {"R@1": 0.0, "mAP": 0.5}, {"R@1": 1.0})]
    other = [Outcome({"R@1": 1.0}, 1), Outcome({"R@1": 1.0}, 1)]
    assert spread_of([outcomes]) == {"R@1": 100.0}
    assert spread_of([outcomes, other]) == {"R@1": 50.0}


def test_the_spread_stands_below_the_figures(tmp_path: Path) -> None:
    annotations = circo(tmp_path / "data") / "annotations/val.json"
    asked = json.loads(annotations.read_text())
    write_json(annotations, [*asked, {**asked[0], "id": 2, "relative_caption": "longer"}])
    with Engine(write_tiny_bundle(tmp_path / "tiny.cir"), device="cpu") as engine:
        measured = measure_accuracy(engine, protocol("circo/covr"), tmp_path / "data", "val")
    found, (done,) = measured.result["paraphrases"], measured.evaluated
    assert (found["groups"], found["queries"]) == (1, 2)
    first, _, third = (outcome.values["mAP@5"] for outcome in done.outcomes)
    assert found["spread"]["mAP@5"] == pytest.approx(100 * abs(first - third))
    assert "paraphrase spread" in accuracy_text(measured.result)


def test_fashioniqs_two_orders_are_wordings_of_one_query(tmp_path: Path) -> None:
    parts = protocol("fashioniq/artemis").load(fashioniq(tmp_path), "val")
    for part in parts:
        groups = paraphrases(part.queries)
        assert groups and all(len(group) == 2 for group in groups)
        assert all(part.queries[a].texts == part.queries[b].texts[::-1] for a, b in groups)


def test_the_server_gets_the_numbers_of_fifty_images(tmp_path: Path) -> None:
    circo(tmp_path / "data")
    with Engine(write_tiny_bundle(tmp_path / "tiny.cir"), device="cpu") as engine:
        plan, out = protocol("circo/searle"), tmp_path / "out"
        measured = measure_accuracy(engine, plan, tmp_path / "data", "test", submission=out)
    assert measured.submissions == (out / "circo.json",)
    said = json.loads((out / "circo.json").read_text())
    assert list(said) == ["0", "1"] and sorted(said["0"]) == [0, 1, 2, 3, 4, 5]
