"""Shards answer as the one gallery that holds their rows one after the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer import Engine, Gallery, Searcher, VectorSearcher
from cir_infer.bundle import Bundle
from cir_infer.cluster.serving import renew
from cir_infer.commands.gallery import main
from cir_infer.errors import CirError, GalleryError, ImageError, UsageError
from cir_infer.hits import Hits
from cir_infer.serving.settings import Settings
from cir_infer.shards import HttpShard, LocalShard, ShardedGallery, ShardedSearcher, follow_folder
from cir_infer.shards.layout import shard_of
from cir_infer.shards.listing import FILE
from cir_infer.shards.ray import RayShards
from tests.bundles import write_tiny_bundle
from tests.gallery.support import DIM, filled, names, vectors


def told(hits: Hits) -> list[Any]:
    return [(hit.id, hit.rank, hit.score, hit.terms, hit.metadata, hit.source, hit.tokens) for hit in hits]


@pytest.mark.parametrize(("dtype", "tokens"), [("float32", 1), ("float16", 3), ("int8", 1)])
def test_answers_are_those_of_one_gallery(tmp_path: Path, dtype: str, tokens: int) -> None:
    """Ids and scores, with ties, removals, filters and exclusions, for any number of shards."""

    @settings(max_examples=8)
    @given(
        seed=st.integers(0, 2**32 - 1),
        sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5),
        k=st.integers(1, 40),
        least=st.integers(0, 20),
    )
    def run(seed: int, sizes: list[int], k: int, least: int) -> None:
        rng = np.random.default_rng(seed)
        kinds = rng.standard_normal((9, tokens, DIM))
        place = tmp_path / f"{seed}-{k}-{least}-{'-'.join(map(str, sizes))}"
        place.mkdir(exist_ok=True)
        options: dict[str, Any] = {"dimension": DIM, "dtype": dtype, "tokens_per_item": tokens}
        shards, first = [], 0
        with Gallery.create(place / "one", **options) as one:
            for number, size in enumerate(sizes):
                shard = Gallery.create(place / f"{number}", **options)
                rows = kinds[rng.integers(0, 9, size)]
                given_rows = {
                    "ids": names(first + size)[first:],
                    "vectors": rows if tokens > 1 else rows[:, 0],
                    "metadata": [{"number": n} for n in range(first, first + size)],
                }
                if size:
                    for gallery in (one, shard):
                        gallery.add_vectors(**given_rows)
                        gallery.remove(given_rows["ids"][:: max(2, size)])
                shards.append(shard)
                first += size
            queries = rng.standard_normal((3, DIM))
            with ShardedSearcher(None, shards) as searcher, VectorSearcher(one) as whole:
                if len(one) == 0:
                    with pytest.raises(GalleryError, match="every shard is empty"):
                        searcher.search_vectors(queries)
                else:
                    asked = (queries, k, f"number >= {least}", ["i3"])
                    mine, theirs = searcher.search_vectors(*asked), whole.search_vectors(*asked)
                    assert [told(hits) for hits in mine] == [told(hits) for hits in theirs]
            for shard in shards:
                shard.close()

    run()


def test_a_gallery_is_split_and_keeps_everything(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 0, fingerprint="model") as gallery:
        gallery.add_vectors(
            ids=names(50),
            vectors=vectors(50),
            metadata=[{"number": n} for n in range(50)],
            sources=[f"/x/{n}" for n in range(50)],
            stamps=[f"s{n}" for n in range(50)],
        )
        gallery.remove(["i7"])
        with ShardedGallery.split(gallery, tmp_path / "s", 4) as made:
            assert len(made) == 49 and made.fingerprint == "model" and min(map(len, made.shards)) > 0
            for number, shard in enumerate(made.shards):
                assert shard.verify().ok
                assert all(shard_of(item, 4) == number for item in shard.ids)
                assert {i: h[1:] for i, h in shard.held(shard.ids).items()} == {
                    i: h[1:] for i, h in gallery.held(shard.ids).items()
                }
            made.of("new").add_vectors(ids=["new"], vectors=vectors(1, 9))
            gallery.add_vectors(ids=["new"], vectors=vectors(1, 9))
            with ShardedSearcher(None, made) as searcher, VectorSearcher(gallery) as whole:
                mine, theirs = searcher.search_vectors(vectors(5, 3)), whole.search_vectors(vectors(5, 3))
                assert [told(hits) for hits in mine] == [told(hits) for hits in theirs]
        with pytest.raises(GalleryError):
            ShardedGallery.split(gallery, tmp_path / "s", 4)
        for wrong in (0, 257, True, 2.5):
            with pytest.raises(UsageError, match="into"):
                ShardedGallery.split(gallery, tmp_path / "t", wrong)  # type: ignore[arg-type]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["g", "s"]


def test_queries_refined_hits_and_balances(tmp_path: Path) -> None:
    pictures = []
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        pictures.append(tmp_path / f"{number}.png")
    with Engine(write_tiny_bundle(tmp_path / "b.cir")) as engine:
        one = Gallery.create(tmp_path / "one", engine)
        shards = [Gallery.create(tmp_path / f"{number}", engine) for number in range(3)]
        for number, shard in enumerate(shards):
            part = slice(3 * number, 3 * number + 3)
            for gallery in (one, shard):
                gallery.add(pictures[part], ids=names(9)[part])
        with ShardedSearcher(engine, shards) as searcher, Searcher(engine, one) as whole:
            balance = {"explicit_matching": 2.0}
            for asked in ((pictures[4], "is red flying"), (whole.item("i5"), "is longer")):
                for more in ({}, {"exclude_reference": True}):
                    mine, theirs = (s.query(*asked, k=9, balance=balance, **more) for s in (searcher, whole))
                    assert told(mine) == told(theirs) and mine.reference_id == theirs.reference_id
                    assert mine.unknown_words == theirs.unknown_words and mine.balance == theirs.balance
                    assert mine.coverage == 1.0 and len(mine.generations) == 3
                why, also = (s.explain("i7", *asked) for s in (searcher, whole))
                assert why.as_dict() == also.as_dict()
                assert mine.explain(2).as_dict() == theirs.explain(2).as_dict()
            searcher.warm_up()
            assert searcher.item("i8") == whole.item("i8") and len(searcher) == 9
            answers = searcher.query_batch([pictures[0], tmp_path / "none"], ["is red"] * 2, errors="return")
            assert [type(answer) for answer in answers] == [Hits, ImageError]
            pairs = [pictures[0], mine[0], pictures[1]], ["is red"] * 3
            for ours, others in zip(
                searcher.query_batch(*pairs, k=4), whole.query_batch(*pairs, k=4), strict=True
            ):
                assert told(ours) == told(others)
            with pytest.raises(GalleryError, match="no shard holds"):
                searcher.query(type(mine[0])("nobody"), "is red")
            with pytest.raises(UsageError, match="text"):
                searcher.query(pictures[0], None)
            with pytest.raises(UsageError, match=r"where|filter|price"):
                searcher.query(pictures[0], "is red", where="price <")
        with pytest.raises(GalleryError, match="encoded by bundle"):
            ShardedSearcher(engine, [filled(tmp_path / "other", fingerprint="other")])


def test_what_is_no_shard(tmp_path: Path) -> None:
    searcher = ShardedSearcher(None, [filled(tmp_path / "g")])
    with searcher, pytest.raises(UsageError, match="no bundle"):
        searcher.query(None, "is red")
    with pytest.raises(UsageError, match="closed"):
        searcher.search_vectors(vectors(1))
    assert LocalShard(tmp_path / "g").held(["nobody"]) == [None]
    with pytest.raises(GalleryError, match="shards have rows of one bundle"):
        ShardedSearcher(None, [tmp_path / "g", filled(tmp_path / "h", fingerprint="other")])
    for wrong in (None, [], [7], 7):
        with pytest.raises(UsageError, match="shard"):
            ShardedSearcher(None, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"}, {"version": 2}, {"version": "1"}, {"rule": "crc"}, {"shards": []}, {"dimension": 9},
        {"shards": ["0000.gallery"] * 2}, {"shards": ["../g", "0001.gallery"]}, {"tokens_per_item": 0},
        {"fingerprint": 7}, {"fingerprint": "other"}, {"more": 1}, {"shards": "0000.gallery"},
    ],
)  # fmt: skip
def test_a_list_of_shards_that_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    with filled(tmp_path / "g") as gallery:
        ShardedGallery.split(gallery, tmp_path / "s", 2).close()
    place = tmp_path / "s" / FILE
    said = json.loads(place.read_text())
    place.write_text(json.dumps({**said, **change}))
    with pytest.raises(GalleryError) as raised:
        ShardedGallery(tmp_path / "s")
    assert len(str(raised.value)) < 600
    for text in ("", "[" * 100_000, "\xff"):
        place.write_bytes(text.encode("latin-1"))
        with pytest.raises(GalleryError):
            ShardedGallery(tmp_path / "s")
    place.unlink()
    with pytest.raises(GalleryError, match="no sharded gallery"):
        ShardedGallery(tmp_path / "s")


def test_a_gallery_is_a_shard_once(tmp_path: Path) -> None:
    """Its items would be answered twice: as a link, a copy, by another path, or the same object."""
    with filled(tmp_path / "g", 30) as gallery:
        ShardedGallery.split(gallery, tmp_path / "s", 3).close()
    first, second = (tmp_path / "s" / f"{number:04}.gallery" for number in range(2))
    lists: list[list[Any]] = [[first, first.parent / "." / first.name], [second, first, second]]
    with Gallery.open(first) as opened:
        for shards in [*lists, [opened, opened]]:
            with pytest.raises(GalleryError, match="again, or a copy of it"):
                ShardedSearcher(None, shards)
    shutil.rmtree(first)
    shutil.copytree(second, first)
    with pytest.raises(GalleryError, match="again, or a copy of it"):
        ShardedSearcher(None, [first, second])
    with pytest.raises(GalleryError, match=r"belongs in shard 1 of .* and not in shard 0"):
        ShardedGallery(tmp_path / "s")
    shutil.rmtree(first)
    first.symlink_to(second)
    with pytest.raises(GalleryError, match="again, or a copy of it"):
        ShardedSearcher(None, [first, second])


def test_shards_that_changed_their_names(tmp_path: Path) -> None:
    """Each is a sound gallery, but an id would be looked for, and written, where it is not."""
    with filled(tmp_path / "g", 30) as gallery:
        ShardedGallery.split(gallery, tmp_path / "s", 3).close()
    first, second = (tmp_path / "s" / f"{number:04}.gallery" for number in range(2))
    first.rename(tmp_path / "s" / "t")
    second.rename(first)
    (tmp_path / "s" / "t").rename(second)
    with pytest.raises(GalleryError, match=r"belongs in shard 1 of .* and not in shard 0"):
        ShardedSearcher(None, tmp_path / "s")


def test_shards_lie_outside_their_gallery(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 3) as gallery, pytest.raises(GalleryError, match="lies inside the gallery"):
        ShardedGallery.split(gallery, tmp_path / "g" / "shards", 2)
    assert not (tmp_path / "g" / "shards").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "g", 20).close()
    assert main(["shard", str(tmp_path / "g"), str(tmp_path / "s"), "--into", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shards"] == 3 and sum(said["counts"]) == said["items"] == 20
    assert main(["shard", str(tmp_path / "g"), str(tmp_path / "s"), "--into", "3"]) == 1
    with ShardedSearcher(None, tmp_path / "s") as searcher:
        assert len(searcher.search_vectors(vectors(1), k=50)[0]) == 20
    with pytest.raises(CirError):
        ShardedSearcher(None, tmp_path / "g")
    capsys.readouterr()
    assert main(["info", str(tmp_path / "s")]) == 1
    assert "it holds the shards of one, each a gallery; ask them all with" in capsys.readouterr().err


def test_another_number_of_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The old shards go on answering; the new ones hold the same, and nothing is half there."""
    folders = [str(tmp_path / name) for name in ("s3", "s5", "s1")]
    with filled(tmp_path / "g", 40, fingerprint="model") as one:
        ShardedGallery.split(one, folders[0], 3).close()
        for before, after, into in ((0, 1, 5), (1, 2, 1)):
            with ShardedSearcher(None, folders[before]) as old:
                expected = [hits.scores for hits in old.search_vectors(vectors(4), k=50)]
                assert main(["shard", folders[before], folders[after], "--into", str(into)]) == 0
                with ShardedSearcher(None, folders[after]) as new:
                    assert len(new.shards) == into
                    assert [hits.scores for hits in new.search_vectors(vectors(4), k=50)] == expected
                assert [hits.scores for hits in old.search_vectors(vectors(4), k=50)] == expected
        with ShardedGallery(folders[2]) as made:
            assert sorted(made.shards[0].ids) == sorted(one.ids)
        with ShardedGallery(folders[0]) as made:  # an id in two shards, which nobody may lose in silence
            item = made.shards[0].ids[0]
            made.shards[1].add_vectors(ids=[item], vectors=vectors(1))
            with pytest.raises(GalleryError, match=item):
                ShardedGallery.split(made, tmp_path / "s2", 2)
        assert not (tmp_path / "s2").exists()
        with ShardedGallery(folders[1]) as made, pytest.raises(GalleryError, match="inside"):
            ShardedGallery.split(made, Path(folders[1]) / "0000.gallery" / "x", 2)


def test_photos_are_turned_as_the_shards_were(tmp_path: Path) -> None:
    """As over one gallery: a bundle that says otherwise was refused, and told to encode everything anew."""
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(4)]
    with Engine(bundle) as engine:
        turned = not engine.manifest.image.exif_orientation  # type: ignore[union-attr]
    with Engine(bundle, exif_orientation=turned) as engine:
        with Gallery.create(tmp_path / "g", engine) as gallery:
            gallery.add(files, ids=names(4))
            ShardedGallery.split(gallery, tmp_path / "s", 2).close()
        fingerprint = engine.fingerprint
    with Searcher(bundle, tmp_path / "g") as whole:
        expected = whole.query(files[0], "is red", k=4)
    for searcher in (
        ShardedSearcher(bundle, tmp_path / "s"),
        ShardedSearcher(Bundle(bundle), [tmp_path / "g"]),
        follow_folder(tmp_path / "s", bundle),
    ):
        with searcher:
            assert searcher.engine.fingerprint == fingerprint
            assert sorted(searcher.query(files[0], "is red", k=4).scores) == sorted(expected.scores)
    filled(tmp_path / "other", fingerprint="another model").close()
    with pytest.raises(GalleryError, match="another model"):
        ShardedSearcher(bundle, [tmp_path / "other"])


@pytest.mark.parametrize("seconds", [1e10, 1e300, float("nan"), float("inf"), -1.0, "1", True, 10**400])
def test_seconds_are_those_that_clocks_take(tmp_path: Path, seconds: Any) -> None:
    """Ten thousand million were an OverflowError in a query; every NaN seconds nobody ever looked."""
    with filled(tmp_path / "g", 4) as one:
        ShardedGallery.split(one, tmp_path / "s", 2).close()
    ways: dict[str, Any] = {
        "deadline": lambda: ShardedSearcher(None, tmp_path / "s", deadline=seconds),
        "timeout": lambda: HttpShard("http://127.0.0.1:9", timeout=seconds),
        "every": lambda: follow_folder(tmp_path / "s", every=seconds),
        "wait": lambda: ShardedGallery(tmp_path / "s", wait=seconds),
        "grace": lambda: RayShards("shop", 1, [], []).renewed(seconds),
        "grace ": lambda: renew("shop", tmp_path / "s", grace=seconds),
        "--drain": lambda: Settings("b.cir", drain=seconds),
        "--timeout": lambda: Settings("b.cir", timeout=seconds),
    }
    for name, way in ways.items():
        with pytest.raises(UsageError, match=f"^{name.strip()} is .*; expected seconds "):
            way()


def test_arguments_of_sharded_galleries_are_looked_at(tmp_path: Path) -> None:
    """NumPy's numbers are numbers; a path is no gallery, and what is closed says so."""
    numbers: Any = {"dimension": np.int32(DIM), "tokens_per_item": np.uint8(1)}
    made = ShardedGallery.create(tmp_path / "s", np.int64(2), **numbers)  # type: ignore[arg-type]
    assert [shard.dimension for shard in made.shards] == [DIM, DIM] and made.of("a") in made.shards
    for wrong in ({"dimension": 0}, {"dimension": True}, {"dimension": "4"}, {"tokens_per_item": None}):
        with pytest.raises(UsageError):
            ShardedGallery.create(tmp_path / "x", 2, **{"dimension": 4, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gallery is"):
        ShardedGallery.split(str(tmp_path / "s"), tmp_path / "x", 2)  # type: ignore[arg-type]
    made.close()
    for call in (lambda: ShardedGallery.split(made, tmp_path / "x", 2), lambda: made.of("a")):
        with pytest.raises(GalleryError, match="is closed"):
            call()
    assert [place.name for place in tmp_path.iterdir()] == ["s"]
    with filled(tmp_path / "g") as gallery:
        assert list(gallery.held(iter(["i1", "nobody", "i1"]))) == ["i1"]  # type: ignore[arg-type]
        for odd in ("i1", 5, None, [b"i1"]):
            with pytest.raises(UsageError):
                gallery.held(odd)  # type: ignore[arg-type]
