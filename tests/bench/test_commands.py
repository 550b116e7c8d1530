"""The commands on tiny real bundles and galleries: what they measure, write and refuse."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from cir_bench.commands import main
from cir_bench.latency import measurement
from cir_bench.latency.stages import STAGES
from cir_bench.latency.transfers import BoundEncoder, time_transfers, why_no_transfers
from cir_bench.latency.workload import draw_workload
from cir_infer import Engine, Gallery, extras
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import BundleError
from cir_infer.extras import is_installed
from cir_infer.runtime import onnx
from tests.bench import layouts
from tests.bundles import DIM, manifest_of, members_of, write_tiny_bundle


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Path, Path]:
    """A bundle, and a gallery of 40 images that it encoded."""
    folder = tmp_path_factory.mktemp("shop")
    bundle = write_tiny_bundle(folder / "tiny.cir")
    images = []
    for number in range(40):
        images.append(folder / "images" / f"{number}.png")
        layouts.picture(images[-1], number)
    with Gallery.create(folder / "tiny.gallery", Engine(bundle, "cpu")) as gallery:
        gallery.add(images, ids=[path.name for path in images])
    return bundle, folder / "tiny.gallery"


@pytest.fixture(scope="module")
def latency(shop, tmp_path_factory) -> dict:
    """A short measurement, as written to a file."""
    output = tmp_path_factory.mktemp("latency") / "latency.json"
    quick = ["--seconds", "0.2", "--batch", "4", "--rate", "50", "--workers", "2", "--starts", "1", "-k", "5"]
    devices = "cpu,openvino" if is_installed("openvino") else "cpu"
    assert main(["latency", *map(str, shop), *quick, "--devices", devices, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_latency_times_every_stage_and_the_whole(latency: dict):
    stages = latency["stages"]
    assert set(stages) == {
        "decode", "preprocess", "image", "text", "compose", "score", "lookup", "query", "refine"
    }  # fmt: skip
    for stage in stages.values():
        assert 0 < stage["p50_ms"] <= stage["p90_ms"] <= stage["p99_ms"] <= stage["max_ms"]
        assert stage["samples"] >= 30
    assert latency["settings"]["workload"].startswith("images of the gallery")
    assert latency["gallery"]["rows"] == 40


def test_latency_compares_devices_by_turns_and_their_answers(latency: dict):
    devices = latency["devices"]
    assert next(iter(devices)) == latency["bundle"]["device"] == "cpu"
    assert devices["cpu"]["query"]["of_first"]["median"] == 1
    for found in devices.values():
        assert found["answers"]["cosine_worst"] > 0.99999 and found["answers"]["same_first_k"] == 1
        assert 0 <= found["answers"]["furthest"] < 1e-3
        for part in ("query", "image", "text"):
            of_first = found[part]["of_first"]
            assert 0 < of_first["p10"] <= of_first["median"] <= of_first["p90"]


def test_latency_says_that_a_cpu_has_no_transfers_and_times_them_where_there_are(latency: dict, shop):
    assert "do not exist" in latency["transfers"]
    assert why_no_transfers("cuda") is None
    engine = Engine(shop[0], "cpu")
    graph = Bundle(shop[0]).graph("image")
    batches = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8, 3), np.uint8)
    bound = BoundEncoder(graph, "cpu", batches[0])
    bound.upload(batches[1])
    bound.run()
    np.testing.assert_array_equal(bound.download(), engine.encode_prepared(batches[1]))
    taken = time_transfers(graph, "cpu", batches[0], seconds=0.05)
    assert list(taken) == ["host-to-device", "image on device", "device-to-host"]
    assert set(taken) < set(STAGES)
    assert all((times > 0).all() for times in taken.values())


@pytest.mark.parametrize(("device", "options"), [("cpu", {"x64": "1"}), ("cuda", {"use_tf32": "0"})])
def test_what_is_timed_is_told_what_queries_are(
    shop, device: Literal["cpu", "cuda"], options: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """On a GPU float32 was timed as TF32, and elsewhere bytes whose sums are cut off."""
    graph = Bundle(shop[0]).graph("image")
    told: list[dict[str, str]] = []

    def session(_: bytes, settings: Any, providers: list[Any]) -> Any:
        if device == "cpu":
            told.append({"x64": settings.get_session_config_entry("session.x64quantprecision")})
        else:
            told.append({} if isinstance(providers[0], str) else providers[0][1])
        raise RuntimeError("no session here")

    monkeypatch.setattr(onnx.ort, "InferenceSession", session)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnx.ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnx, "exact_products", lambda _: ("session.x64quantprecision", "1"))
    with pytest.raises(BundleError, match="no session here"):
        onnx.OnnxBackend(device).load("image", graph)
    with pytest.raises((BundleError, RuntimeError), match="no session here"):
        BoundEncoder(graph, device, np.zeros((1, 8, 8, 3), np.uint8))
    assert told == [options, options]


def test_latency_under_load_from_cold_and_against_the_machine(latency: dict):
    (point,) = latency["load"]
    assert point["rate_per_s"] == 50
    assert point["latency"]["p50_ms"] >= 0
    assert latency["batches"][0]["size"] == 4
    assert latency["cold_start"]["to_first_answer_ms"] > latency["cold_start"]["steps_ms"]["interpreter"]
    assert latency["roofline"]["score_fraction"] > 0
    assert {entry["kind"] for entry in latency["roofline"]["predictions"]} == {"predicted"}
    assert any("p99 needs" in doubt for doubt in latency["doubts"])
    assert latency["commit"]


def test_latency_prints_tables_and_warnings(shop, capsys):
    quick = ["--seconds", "0.1", "--batch", "2", "--rate", "0", "--starts", "0", "--device", "cpu"]
    assert main(["latency", *map(str, shop), *quick]) == 0
    printed = capsys.readouterr().out
    assert "end to end: image and text to hits" in printed
    assert "predicted, not measured" in printed
    assert "warning: " in printed
    assert "requests/s" not in printed


@pytest.mark.parametrize("system", ["separate", "text-only", "image-only", "features"])
def test_latency_of_every_kind_of_system(system: str, tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir", system)
    rows = np.random.default_rng(0).normal(size=(30, DIM)).astype(np.float32)
    Gallery.from_arrays(
        tmp_path / "g.gallery", ids=[str(i) for i in range(30)], vectors=rows, engine=Engine(bundle, "cpu")
    ).close()
    quick = ["--seconds", "0.1", "--batch", "2", "--rate", "20", "--starts", "1", "--device", "cpu", "--json"]
    if system != "features":
        layouts.picture(tmp_path / "images" / "a.png", 1)
        quick += ["--images", str(tmp_path / "images")]
    assert main(["latency", str(bundle), str(tmp_path / "g.gallery"), *quick]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert ("image" in stages) == (system != "text-only")
    assert ("text" in stages) == (system != "image-only")
    assert ("refine" in stages) == (system not in ("separate", "text-only"))


def test_queries_are_made_of_the_words_of_any_tokenizer(tmp_path: Path):
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("\u2581red", -1.0), ("\u2581longer", -1.0), ("\u2581a", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    text = replace(manifest_of("artemis").text, pad_id=0, unk_id=1, max_tokens=5)
    members = {**members_of("artemis"), "tokenizer.json": tokenizer.to_str().encode()}
    write_bundle(tmp_path / "unigram.cir", manifest_of("artemis", text=text), members)
    bundle = Bundle(tmp_path / "unigram.cir")
    rows = np.ones((1, DIM), np.float32)
    with Gallery.from_arrays(
        tmp_path / "g", ids=["a"], vectors=rows, engine=Engine(bundle, "cpu")
    ) as gallery:
        texts = draw_workload(bundle, gallery.snapshot()).texts
    assert {word for text in texts for word in str(text).split()} == {"red", "longer"}
    assert all(len(tokenizer.encode(str(text)).ids) <= 5 for text in texts)


def test_a_latency_over_nothing_is_said_to_be_that(tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    Gallery.create(tmp_path / "g.gallery", Engine(bundle, "cpu")).close()
    assert main(["latency", str(bundle), str(tmp_path / "g.gallery"), "--device", "cpu"]) == 2
    assert "the gallery holds no item; index some images first" in capsys.readouterr().err


def test_the_report_of_a_latency_is_one_page_that_needs_nothing_else(latency: dict, tmp_path: Path, capsys):
    source, page = tmp_path / "latency.json", tmp_path / "report.html"
    source.write_text(json.dumps(latency))
    assert main(["report", str(source), "--output", str(page)]) == 0
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert str(page) in capsys.readouterr().out
    assert main(["report", str(source), "--output", str(source)]) == 2
    assert json.loads(source.read_text()) == latency


def test_accuracy_writes_a_result_and_a_page_of_failures(tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    root = layouts.shoes(tmp_path / "shoes")
    output, failures = tmp_path / "accuracy.json", tmp_path / "failures.html"
    arguments = [
        "accuracy",
        str(bundle),
        str(root),
        "--protocol",
        "shoes",
        "--resume",
        str(tmp_path / "kept"),
    ]
    more = [
        "--row-type",
        "int8",
        "--against",
        str(bundle),
        "--failures",
        str(failures),
        "--output",
        str(output),
    ]
    assert main([*arguments, *more]) == 0
    printed = capsys.readouterr().out
    assert "R@10" in printed
    assert "first ten agree" in printed
    result = json.loads(output.read_text())
    assert result["parts"][0]["queries"] == 2
    assert result["drift"]["embedding_cosine"]["worst"] == pytest.approx(1.0)
    assert failures.read_text().startswith("<!doctype html>")
    assert "http" not in failures.read_text()


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_accuracy_goes_on_on_the_same_device_alone(tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    kept = tmp_path / "kept"
    arguments = ["accuracy", str(bundle), str(layouts.shoes(tmp_path / "shoes")), "--protocol", "shoes"]
    for device in ("cpu", "openvino", "cpu"):
        assert main([*arguments, "--json", "--no-alone", "--resume", str(kept), "--device", device]) == 0
        capsys.readouterr()
    assert len(list(kept.rglob("*.npy"))) == 2  # rows as each of the two made them


def test_a_training_counts_once_among_its_runs(tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    other = tmp_path / "other.cir"
    shutil.copy(bundle, other)
    (tmp_path / "again.cir").symlink_to(bundle)
    root = layouts.shoes(tmp_path / "shoes")
    command = ["accuracy", str(bundle), str(root), "--protocol", "shoes", "--no-alone", "--json", "--runs"]
    for runs in ([bundle], [other, other], [other, tmp_path / "again.cir"]):
        assert main([*command, *map(str, runs)]) == 2
        assert "is named twice; BUNDLE and --runs are a training each" in capsys.readouterr().err
    assert main([*command, str(other)]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]["bundles"]) == 2


@pytest.mark.parametrize("flag", ["--output", "--failures"])
def test_what_is_measured_is_not_written_over(tmp_path: Path, capsys, flag: str):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    before = bundle.read_bytes()
    root = layouts.shoes(tmp_path / "shoes")
    assert main(["accuracy", str(bundle), str(root), "--protocol", "shoes", flag, str(bundle)]) == 2
    assert "is read for what would take its place" in capsys.readouterr().err
    assert bundle.read_bytes() == before


def test_accuracy_goes_on_where_it_stopped(tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    root = layouts.shoes(tmp_path / "shoes")
    arguments = [
        "accuracy",
        str(bundle),
        str(root),
        "--protocol",
        "shoes",
        "--resume",
        str(tmp_path / "kept"),
    ]
    assert main([*arguments, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    for image in (root / "images").rglob("*.jpg"):
        stat = image.stat()
        image.write_bytes(bytes(stat.st_size))  # nobody looks into it again
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == first["parts"]


def test_accuracy_goes_on_with_the_same_pictures_alone(tmp_path: Path, capsys):
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    root = layouts.shoes(tmp_path / "shoes")
    arguments = ["accuracy", str(bundle), str(root), "--protocol", "shoes", "--json"]
    resumed = [*arguments, "--resume", str(tmp_path / "kept")]

    def scores(which: list[str]) -> object:
        assert main(which) == 0
        return json.loads(capsys.readouterr().out)["parts"][0]["metrics"]

    before = scores(resumed)
    for seed, image in enumerate(sorted((root / "images").rglob("*.jpg"))):
        layouts.picture(image, 5 - seed)  # other pictures under the same names
    assert scores(resumed) == scores(arguments) != before


def test_a_submission_has_the_subset_of_the_whole_ranking(tmp_path: Path):
    """CLIP4Cir ranks CIRR's subsets among all images; three names of each query are wanted."""
    names = [f"test1-{number}" for number in range(90)]
    for number, name in enumerate(names):
        layouts.picture(tmp_path / f"cirr/test1/{name}.png", number)
    layouts.write_json(
        tmp_path / "cirr/image_splits/split.rc2.test1.json", {name: f"./test1/{name}.png" for name in names}
    )
    asked = [
        {
            "pairid": pair,
            "reference": names[pair],
            "caption": "is red",
            "img_set": {"members": [names[pair], *names[9 * pair + 20 : 9 * pair + 25]]},
        }
        for pair in range(7)
    ]
    layouts.write_json(tmp_path / "cirr/captions/cap.rc2.test1.json", asked)
    arguments = ["accuracy", str(write_tiny_bundle(tmp_path / "tiny.cir")), str(tmp_path / "cirr")]
    more = ["--protocol", "cirr/clip4cir", "--split", "test1", "--submission", str(tmp_path / "up")]
    assert main([*arguments, *more]) == 0
    found = json.loads((tmp_path / "up/recall_subset.json").read_text())
    for query in asked:
        first = found[str(query["pairid"])]
        assert len(set(first)) == 3 and set(first) < set(query["img_set"]["members"]) - {query["reference"]}


def test_the_mean_over_parts_is_over_all_of_them(tmp_path: Path, capsys):
    for number in range(6):
        layouts.picture(tmp_path / f"icir/database/{number}.jpg", number)
    database = [
        f"database/{number}.jpg,{'red' if number % 2 else 'blue'},{'ab'[number // 3]}" for number in range(6)
    ]
    (tmp_path / "icir/database_files.csv").write_text("\n".join(database))
    (tmp_path / "icir/query_files.csv").write_text("database/0.jpg,red,a\ndatabase/3.jpg,green,b\n")
    arguments = ["accuracy", str(write_tiny_bundle(tmp_path / "tiny.cir")), str(tmp_path / "icir")]
    assert main([*arguments, "--protocol", "icir"]) == 1
    assert "'a' has published answers and 'b' has none" in capsys.readouterr().err


def test_accuracy_lists_its_protocols(capsys):
    assert main(["accuracy", "--protocols"]) == 0
    assert "fashioniq/clip4cir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["latency", "no.cir", "no.gallery"], 1, "no.cir"),
        (["latency", "{bundle}", "no.gallery", "--device", "cpu"], 1, "no.gallery"),
        (["latency", "{bundle}", "{gallery}", "--seconds", "0"], 2, "--seconds"),
        (["latency", "{bundle}", "{gallery}", "--batch", "0"], 2, "--batch"),
        (["latency", "{bundle}", "{gallery}", "--rate", "-1"], 2, "--rate"),
        (["latency", "{bundle}", "{gallery}", "--output", "/no/such/folder/x.json"], 2, "no folder"),
        (["latency", "{bundle}", "{gallery}", "--device", "gpu"], 2, "gpu"),
        (["accuracy", "{bundle}"], 2, "--protocol"),
        (["accuracy", "{bundle}", ".", "--protocol", "imagenet"], 2, "imagenet"),
        (["accuracy", "{bundle}", "/no/such/data", "--protocol", "shoes"], 1, "/no/such/data"),
        (["accuracy", "{bundle}", ".", "--protocol", "shoes", "--split", "moon"], 2, "moon"),
        (["accuracy", "{bundle}", ".", "--protocol", "shoes", "--submission", "x"], 2, "--submission"),
        (["accuracy", "{bundle}", ".", "--protocol", "shoes", "--batch-size", "0"], 2, "--batch-size"),
        (["compare"], 2, "MODEL"),
        (["compare", "no-model.pt"], 1, "no-model.pt"),
        (["compare", "m.pt", "--k", "5", "--rows", "3"], 2, "--rows"),
        (["table7", "--queries", "0"], 2, "--queries"),
        (["table7", "--threads", "0"], 2, "--threads"),
        (["compare", "m.pt", "--seconds", "0"], 2, "--seconds"),
        (["scoring", "--threads", "0"], 2, "--threads"),
        (["latency", "{bundle}", "{gallery}", "--threads", "0"], 2, "--threads"),
        (["latency", "{bundle}", "{gallery}", "--seconds", "nan"], 2, "--seconds"),
        (["latency", "{bundle}", "{gallery}", "--rate", "inf"], 2, "--rate"),
        (["latency", "{bundle}", "{gallery}", "--texts", "{bundle}"], 2, "tiny.cir"),
        (["latency", "{bundle}", "{gallery}", "--texts", "{gallery}"], 2, "tiny.gallery"),
        (["report", "/no/such/file.json"], 2, "/no/such/file.json"),
        (["report", "{bundle}"], 2, "tiny.cir"),
        (["report", "{bundle}", "--check"], 2, "--tables"),
    ],
)
def test_bad_input_is_one_line(shop, capsys, arguments: list[str], code: int, message: str):
    bundle, gallery = shop
    given = [argument.format(bundle=bundle, gallery=gallery) for argument in arguments]
    try:
        found = main(given)
    except SystemExit as error:
        found = error.code
    assert found == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("name", ["latency", "accuracy", "compare", "table7", "report"])
def test_help_shows_an_example(name: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"cir-bench {name}" in capsys.readouterr().out.split("example")[1]


@pytest.mark.parametrize(
    "arguments",
    [["latency", "x.cir", "x.gallery"], ["compare", "no-model.pt"], ["table7"]],
    ids=lambda arguments: arguments[0],
)
def test_what_is_not_installed_is_told_before_anything_is_measured(
    arguments: list[str], capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert f"cir-bench {arguments[0]} needs " in told
    assert "pip install 'cir-infer[" in told


def test_a_device_that_cannot_be_used_is_told_before_anything_is_measured(
    shop, capsys, monkeypatch: pytest.MonkeyPatch
):
    def measured(*_: object) -> None:
        pytest.fail("it was measured before that")

    monkeypatch.setattr(measurement, "time_stages", measured)
    assert main(["latency", *map(str, shop), "--devices", "cpu,moon"]) == 2
    assert "moon" in capsys.readouterr().err


def test_a_command_alone_is_what_is_missing(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("required: COMMAND\n")
