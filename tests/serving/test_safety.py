"""Who may ask what, and how much."""

from __future__ import annotations

import base64
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cir_infer import CirError, Engine, Gallery
from cir_infer.errors import UsageError
from cir_infer.serving.keys import Keys
from cir_infer.serving.settings import Settings, is_loopback
from tests.bundles import write_tiny_bundle
from tests.serving.support import Client, Gated, Running, png, running, together

KEY = "0123456789abcdef-one"
OTHER = "0123456789abcdef-two"


def talk(port: int, *parts: bytes, pause: float = 0.0, timeout: float = 10.0) -> bytes:
    """What the service says to bytes as they are."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        with suppress(ConnectionError):  # it may have heard enough
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        said = b""
        while chunk := connection.recv(65536):
            said += chunk
            if b"\r\n\r\n" in said and b"connection: close" not in said.lower():
                break
        return said


# ---- keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# for tests\nphone: {KEY}\n\n{OTHER}\n")
    file.chmod(0o600)
    return file


def test_keys_are_asked_for(bundle: Path, keys: Path) -> None:
    with running(bundle, api_key_file=str(keys)) as (client, *_):
        for path in ("/v1/info", "/v1/items", "/v1/items/sku-1/image", "/metrics", "/v1/nothing"):
            answer = client("GET", path)
            assert (answer.status, answer.kind) == (401, "unauthorized"), path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert client("GET", path).status == 200, path
        for header in (
            f"Bearer {KEY}x",
            f"Basic {KEY}",
            KEY,
            "Bearer",
            "Bearer \xe4",
            f"bearer {OTHER[:-1]}",
        ):
            assert client("GET", "/v1/info", Authorization=header).status == 401, header
        for key in (KEY, OTHER):
            assert Client(client.port, key)("GET", "/v1/info").status == 200
        # A name that leads here is no danger where a key is asked for.
        assert client("GET", "/v1/info", Authorization=f"Bearer {KEY}", Host="shop.example").status == 200


def test_the_log_says_who_was_refused(bundle: Path, keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = caplog.at_level("INFO", "cir_infer.serving.access")
    with told, running(bundle, api_key_file=str(keys), access_log=True) as (client, *_):
        assert client("GET", "/v1/info", Authorization=f"Bearer {KEY}x").status == 401
        assert client("GET", "/v1/info", Authorization=f"Bearer {KEY}").status == 200
    said = [record.getMessage() for record in caplog.records if record.name == "cir_infer.serving.access"]
    assert [line.split()[0] for line in said] == ["127.0.0.1", "key:phone"]
    assert KEY not in "".join(said)


@pytest.mark.parametrize(
    "text", ["", "# nothing", "short", "phone: short", f"a: {KEY}\na: {OTHER}", "two words"]
)
def test_files_that_hold_no_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError) as raised:
        Keys.read(tmp_path / "keys")
    assert KEY not in str(raised.value)


def test_elsewhere_a_key_is_needed(bundle: Path, keys: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "shop.example"):
        with pytest.raises(UsageError, match="--api-key-file"):
            Settings(str(bundle), host=host)
        Settings(str(bundle), host=host, api_key_file=str(keys))
        Settings(str(bundle), host=host, no_auth=True)
    with pytest.raises(UsageError, match="contradict"):
        Settings(str(bundle), api_key_file=str(keys), no_auth=True)
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost")))


def test_settings_survive_a_command_line(bundle: Path) -> None:
    origins = (
        "https://shop.example",
        "http://localhost:3000",
        "http://[::1]:3000",
        "null",
        "capacitor://localhost",
    )
    settings = Settings(str(bundle), port=9, allow_hosts=("a", "b", "*"), allow_origins=origins, timeout=2.5)
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"port": 70000}, {"timeout": 0}, {"timeout": float("nan")}]
)
def test_settings_that_make_no_sense(bundle: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(CirError, match="expected"):
        Settings(str(bundle), **wrong)  # type: ignore[arg-type]


# ---- pages of other sites


def test_a_name_that_leads_here_is_refused(client: Client) -> None:
    strange = (
        "[::1].evil.example",
        "localhost:80.evil.example",
        "localhost:a",
        "[::1",
        "::1]",
        "[localhost]x",
    )
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "", *strange):
        assert client("GET", "/v1/info", Host=host).kind == "misdirected", host
    for host in ("localhost", f"127.0.0.1:{client.port}", "[::1]:1"):
        assert client("GET", "/v1/info", Host=host).status == 200, host


@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization", "Content-Type"])
def test_what_decides_a_request_is_said_once(client: Client, name: str) -> None:
    """The last one counted here, and another one for who stands between."""
    own = f"127.0.0.1:{client.port}"
    heads = {"Host": own, "Content-Type": "application/json", "Content-Length": "2", "Connection": "close"}
    again = {
        "Host": own,
        "Origin": f"http://{own}",
        "Authorization": "Bearer x",
        "Content-Type": "text/plain",
    }
    lines = [
        *heads.items(),
        *([(name, again[name])] * (1 if name in heads else 2)),
        ("X-Any", "1"),
        ("X-Any", "2"),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    said = talk(client.port, f"POST /v1/search HTTP/1.1\r\n{head}\r\n{{}}".encode())
    assert b" 400 " in said and f"the header {name.lower()} is there twice".encode() in said


def test_pages_of_other_sites_may_not_ask(client: Client, bundle: Path) -> None:
    query = {"item": "sku-1", "text": "is red"}
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        answer = client("POST", "/v1/search", query, Origin=origin)
        assert (answer.status, answer.kind) == (403, "forbidden")
        assert "access-control-allow-origin" not in answer.headers
    assert client("POST", "/v1/search", query, Origin=f"http://127.0.0.1:{client.port}").status == 200
    with running(bundle, allow_origins=("https://shop.example",)) as (other, *_):
        told = other("OPTIONS", "/v1/search", Origin="https://shop.example")
        assert (told.status, told.headers["access-control-allow-origin"]) == (204, "https://shop.example")
        answer = other("POST", "/v1/search", query, Origin="https://shop.example")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")


def test_every_answer_has_the_headers(client: Client) -> None:
    for path in ("/", "/v1/info", "/nothing", "/v1/items/sku-1/image"):
        headers = client("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


@pytest.mark.parametrize("system", ["features", "separate", "text-only", "image-only", "tokens", "artemis"])
def test_no_answer_names_a_folder(tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bundle on features a question why was refused with the path of the bundle."""
    folder = tmp_path / "hidden-folder"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    bundle = write_tiny_bundle(folder / "b.cir", system)
    ids = ["none", "gone", "folder"]
    with (
        Engine(bundle, device="cpu", threads=1) as engine,
        Gallery.create(folder / "b.gallery", engine) as gallery,
    ):
        rows = np.ones((3, engine.tokens_per_item, engine.dimension))
        sources = [None, str(folder / "gone.png"), str(folder)]
        gallery.add_vectors(ids=ids, vectors=rows if system == "tokens" else rows[:, 0], sources=sources)
    image = base64.b64encode(png(1)).decode()
    for given in (bundle, Path("hidden-folder/b.cir")):
        with running(given, writable=True) as (client, *_):
            answers = [client("GET", "/v1/info"), client("GET", "/v1/items")]
            for item in ids:
                for asked in ({"item": item}, {"image": image}, {}):
                    query = {**asked, "text": "is red"}
                    answers.append(client.search(**query, explain=3))
                    answers.append(client.search(**query, where="((", k=10**6))
                    answers.append(client("POST", "/v1/explain", {**query, "hit": item}))
                answers.append(client("GET", f"/v1/items/{item}/image"))
                answers.append(client("PUT", f"/v1/items/{item}", png(2), Content_Type="image/png"))
            assert [answer for answer in answers if b"hidden-folder" in answer.body] == []
            assert all(answer.status < 500 for answer in answers)


# ---- sizes and times


def test_bodies_have_a_limit(bundle: Path) -> None:
    with running(bundle, max_upload=10_000) as (client, service, _):
        answer = client("POST", "/v1/search", b"x" * 10_001, Content_Type="application/json")
        assert (answer.status, answer.kind) == (413, "too-large")
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        said = talk(client.port, head + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
        assert b" 413 " in said
        said = talk(client.port, head + b"Content-Length: 999999999999999\r\n\r\n")
        assert b" 413 " in said
        said = talk(client.port, head + b"Content-Length: 99999999999999999999\r\n\r\n")
        assert b" 413 " in said or b" 400 " in said  # a parser need not count so far
        answer = client("POST", "/v1/search", b"{}", Content_Type="application/json", Content_Encoding="gzip")
        assert answer.kind == "unsupported-media-type"
        assert service.budget._left == 256 << 20


@pytest.mark.parametrize(
    ("path", "start", "value", "end"),
    [
        ("/v1/search/batch", '{"queries": [', "{}", "]}"),
        ("/v1/search/batch", '{"queries": [', "1", "]}"),
        ("/v1/search/vectors", '{"vectors": [', "[]", "]}"),
        ("/v1/search", '{"exclude": [', "1", "]}"),
        ("/v1/search", '{"text": "is red", "where": {"a": [', "[]", "]}}"),
    ],
)
def test_json_of_too_many_values_is_not_read(
    client: Client, path: str, start: str, value: str, end: str
) -> None:
    body = start + ",".join([value] * 200_001) + end
    answer = client("POST", path, body.encode(), Content_Type="application/json")
    assert (answer.status, answer.kind) == (413, "too-large")
    assert "values" in answer.json["detail"]


def test_uploads_share_a_budget(bundle: Path) -> None:
    with running(bundle) as (client, service, _):
        service.budget._left = 1000
        answer = client.form("/v1/search", [("text", "is red")], png(1, (60, 60)))
        assert (answer.status, answer.kind) == (503, "overloaded")
        assert service.budget._left == 1000


def test_slow_clients_lose_their_place(bundle: Path) -> None:
    with running(bundle, read_timeout=1) as (client, *_):
        begun = time.monotonic()
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sent = (b"GET /v1/info HTTP/1.1\r\nHo",), (), (head + b"Content-Length: 100\r\n\r\n{",)
        begun_a_head, silent, begun_a_body = together([partial(talk, client.port, *parts) for parts in sent])
        assert begun_a_head == silent == b""
        assert b" 408 " in begun_a_body
        assert time.monotonic() - begun < 60
        assert client("GET", "/healthz").status == 200


def test_a_body_that_turns_out_to_be_none_is_no_fault_of_ours(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(bundle) as (client, *_):
        chunks = head + b"Transfer-Encoding: chunked\r\n\r\n", b"ffffffffffffffffffffff\r\nx"
        assert b" 400 " in talk(client.port, *chunks, pause=0.1)
        assert client("GET", "/healthz").status == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_huge_heads_are_refused(client: Client) -> None:
    said = talk(client.port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
    assert b" 431 " in said
    parts = [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", *[b"x" * 10_000] * 4]
    assert b" 400 " in talk(client.port, *parts, pause=0.02)


def test_one_client_leaves_room_for_others(bundle: Path) -> None:
    with running(bundle, per_key=2) as (client, service, _):
        searcher = Gated.under(service)
        query = {"item": "sku-1", "text": "is red"}
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(client("POST", "/v1/search", query).status))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        searcher.arrived.acquire()
        until = time.monotonic() + 60
        while service.metrics.open._value.get() < 2 and time.monotonic() < until:
            time.sleep(0.01)
        answer = client("POST", "/v1/search", query)
        assert (answer.status, answer.kind, answer.headers["retry-after"]) == (429, "too-many-requests", "1")
        searcher.gate.set()
        for thread in threads:
            thread.join()
        assert results == [200, 200]


def test_a_closed_door_says_so(served: Running) -> None:
    answers = together([lambda: served.client("PATCH", "/v1/items"), lambda: served.client("POST", "/")])
    assert [answer.status for answer in answers] == [405, 405]
    assert {answer.kind for answer in answers} == {"method-not-allowed"}
