"""The bundle file: what is written is read, what was changed is refused."""

from __future__ import annotations

import json
import struct
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import Manifest
from cir_infer.bundle.writing import FilePart
from cir_infer.errors import BundleError
from tests.bundles import manifest_of, members_of, write_tiny_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("original") / "tiny.cir", "cosine")


def content(bundle: Bundle) -> tuple[Manifest, list[bytes]]:
    return bundle.manifest, [bundle.read(name) for name in bundle.manifest.members]


def repack(source: Path, target: Path, **changes: bytes | None) -> Path:
    """The same archive with some members' bytes replaced, or left out where None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = changes.get(name.replace(".", "_"), old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def with_manifest(source: Path, target: Path, change: dict[str, object]) -> Path:
    with zipfile.ZipFile(source) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    manifest.update(change)
    return repack(source, target, manifest_json=json.dumps(manifest).encode())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    members = members_of("artemis")
    sealed = write_bundle(tmp_path / "a.cir", manifest_of("artemis", parity={"worst": 1e-6}), members)
    bundle = Bundle(tmp_path / "a.cir")
    bundle.verify()
    assert bundle.manifest == sealed
    assert {name: bundle.read(name) for name in sealed.members} == members
    assert bundle.graph("image").data == members["image.onnx"]
    with zipfile.ZipFile(tmp_path / "a.cir") as archive:
        assert archive.namelist()[0] == "manifest.json"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "a.cir")
    write_tiny_bundle(tmp_path / "b.cir")
    assert (tmp_path / "a.cir").read_bytes() == (tmp_path / "b.cir").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "a.cir")
    before = path.read_bytes()
    members = members_of("artemis")
    (tmp_path / "weights").write_bytes(bytes(100))
    short = FilePart(tmp_path / "weights", 0, 200)
    with pytest.raises(BundleError, match="cut short"):
        write_bundle(path, manifest_of("artemis"), {**members, "image.onnx": short})
    (tmp_path / "weights").unlink()
    with pytest.raises(FileNotFoundError):
        write_bundle(path, manifest_of("artemis"), {**members, "image.onnx": short})
    del members["text.onnx"]
    with pytest.raises(BundleError, match="members are"):
        write_bundle(path, manifest_of("artemis"), members)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.cir"]


def test_readers_see_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "a.cir", "artemis")
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(Bundle(path).manifest.system)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        write_tiny_bundle(path, "cosine" if number % 2 else "artemis")
    stop.set()
    reader.join()
    assert set(seen) <= {"artemis", "cosine"}
    assert seen


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle(tmp_path / "none.cir")
    with pytest.raises(BundleError, match="not a file"):
        Bundle(tmp_path)
    for data in (b"", b"PK", b"junk" * 100, struct.pack("<I", 0x06054B50) + bytes(18)):
        (tmp_path / "junk.cir").write_bytes(data)
        with pytest.raises(BundleError):
            Bundle(tmp_path / "junk.cir")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle(tmp_path / "other.zip")


def test_newer_foreign_and_unknown(original: Path, tmp_path: Path) -> None:
    for change, told in (
        ({"version": 3}, "upgrade cir-infer"),
        ({"format": "onnx-bundle"}, "not a bundle"),
        ({"colour": "red"}, "colour"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
    ):
        with pytest.raises(BundleError, match=told):
            Bundle(with_manifest(original, tmp_path / "b.cir", change))


def test_members_that_do_not_fit_the_manifest(original: Path, tmp_path: Path) -> None:
    data = Bundle(original).read("image.onnx")
    altered = bytes([data[0] ^ 1]) + data[1:]
    bundle = Bundle(repack(original, tmp_path / "b.cir", image_onnx=altered))
    with pytest.raises(BundleError, match="sha256"):
        bundle.read("image.onnx")
    with pytest.raises(BundleError, match="sha256"):
        Engine(tmp_path / "b.cir", device="cpu")
    with pytest.raises(BundleError, match="bytes"):
        Bundle(repack(original, tmp_path / "b.cir", image_onnx=data + b"x"))
    with pytest.raises(BundleError, match="manifest lists"):
        Bundle(repack(original, tmp_path / "b.cir", image_onnx=None))
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle(repack(original, tmp_path / "b.cir", manifest_json=None))


def test_stray_and_repeated_members(original: Path, tmp_path: Path) -> None:
    path = repack(original, tmp_path / "b.cir")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../etc/evil", "x")
    with pytest.raises(BundleError, match="manifest lists"):
        Bundle(path)
    path = repack(original, tmp_path / "c.cir")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("image.onnx", "x")
    with pytest.raises(BundleError):
        Bundle(path).read("image.onnx")


def test_compressed_members_are_refused(original: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(original) as old,
        zipfile.ZipFile(tmp_path / "z.cir", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BundleError, match="compressed"):
        Bundle(tmp_path / "z.cir")


def test_a_manifest_of_absurd_size_costs_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.cir", "w") as archive:
        archive.writestr("manifest.json", " " * (5 << 20))
    with pytest.raises(BundleError, match="claims"):
        Bundle(tmp_path / "m.cir")


def test_no_such_member(original: Path) -> None:
    with pytest.raises(BundleError, match="no member"):
        Bundle(original).read("secret.txt")


def test_a_bundle_that_goes_away_while_it_is_open(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "a.cir")
    bundle = Bundle(path)
    write_tiny_bundle(path, "image-only")
    with pytest.raises(BundleError, match="gone"):
        bundle.read("text.onnx")
    path.unlink()
    with pytest.raises(BundleError, match="does not exist"):
        bundle.read("image.onnx")


@settings(max_examples=300)
@given(data=st.data())
def test_any_damage_is_an_error_or_changes_nothing(original: Path, data: st.DataObject) -> None:
    raw = bytearray(original.read_bytes())
    # The archive's directory and headers are few bytes among many: aim there every other time.
    directory = raw.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", raw, directory + 16)[0]
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        low = start if data.draw(st.booleans(), label="directory") else 0
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(low, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path = original.with_name("damaged.cir")
    path.write_bytes(raw)
    expected = content(Bundle(original))
    try:
        found = content(Bundle(path))
    except BundleError:
        return
    assert found == expected


def test_every_single_byte(original: Path) -> None:
    """Each byte of the archive's own structure, flipped in all its bits."""
    raw = original.read_bytes()
    directory = struct.unpack_from("<I", raw, raw.rindex(b"PK\x05\x06") + 16)[0]
    expected = content(Bundle(original))
    path = original.with_name("flipped.cir")
    for place in [*range(80), *range(directory, len(raw))]:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        try:
            found = content(Bundle(path))
        except BundleError:
            continue
        assert found == expected


def test_the_fingerprint_is_of_the_image_graph_and_its_preprocessing(tmp_path: Path) -> None:
    def fingerprint(system: str, **changes: object) -> str:
        return Bundle(write_tiny_bundle(tmp_path / "f.cir", system, **changes)).manifest.fingerprint

    artemis = fingerprint("artemis")
    assert artemis == fingerprint("cosine")
    assert artemis == fingerprint("artemis", provenance={"a": 1}, created_by="someone else")
    assert artemis != fingerprint("features")
    image = manifest_of("artemis").image
    assert artemis != fingerprint("artemis", image=replace(image, exif_orientation=True))  # type: ignore[type-var]
    assert len(artemis) == 64
