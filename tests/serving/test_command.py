"""`cir-serve` as a process: flags, the environment, signals, workers."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cir_infer.commands.serve import main
from cir_infer.console.environment import take_environment
from cir_infer.processes.children import child_command, child_environment
from cir_infer.serving.server import listen
from cir_infer.serving.settings import Settings
from tests.bundles import write_tiny_bundle
from tests.serving.support import Client

QUERY = {"item": "sku-1", "text": "is red", "k": 3}


@contextmanager
def command(bundle: Path, *flags: str) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """The command, until it is killed."""
    program = "import sys; from cir_infer.commands.serve import main; sys.exit(main())"
    told = ["--port=0", "--json", "--threads=1", "--device=cpu", *flags]
    child = [sys.executable, "-c", program, str(bundle), *told]
    process = subprocess.Popen(
        child,
        env=child_environment(PYTHONUNBUFFERED=""),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        said = ""
        while not said.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            said += line
        yield Client(int(json.loads(said)["address"].rpartition(":")[2])), process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_workers_share_an_address_and_outlive_each_other(bundle: Path) -> None:
    with command(bundle, "--workers=2") as (client, process):
        first = client("POST", "/v1/search", QUERY)
        assert first.status == 200
        workers = children(process.pid)
        assert len(workers) == 2
        until(lambda: listening(client.port) == 2)
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                statuses.append(client("POST", "/v1/search", QUERY).status)

        asking = threading.Thread(target=ask)
        asking.start()
        process.send_signal(signal.SIGHUP)
        until(lambda: b'cir_bundle_reloads_total{outcome="done"} 2.0' in client("GET", "/metrics").body)
        stop.set()
        asking.join()
        assert set(statuses) == {200}
        # Over both workers; what is answered is counted right after.
        until(lambda: counted(client) == len(statuses) + 1)
        os.kill(workers[0], signal.SIGKILL)
        # One look for both: the process that is killed may end between two.
        until(lambda: len(set(children(process.pid)) - {workers[0]}) == 2)
        workers = sorted(set(children(process.pid)) - {workers[0]})
        # One of them has only just begun; the signal neither ends it nor is forgotten.
        process.send_signal(signal.SIGHUP)
        until(lambda: b'cir_bundle_reloads_total{outcome="done"} 4.0' in client("GET", "/metrics").body)
        assert children(process.pid) == workers
        assert listening(client.port) == 2  # one each, that of the dead one is gone
        assert client("POST", "/v1/search", QUERY).json["hits"] == first.json["hits"]
        stopped_while_asked(process, client.port)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "Traceback" not in said, said[-6000:]
        assert "is red" not in said  # no query contents unless asked
        assert "POST /v1/search 200" in said


def stopped_while_asked(process: subprocess.Popen[str], port: int) -> None:
    """Stop it while a request is on its way: that is answered, and nobody gets a connection any more."""
    body = json.dumps(QUERY).encode()
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        until(lambda: b"\ncir_open_requests 2.0" in Client(port)("GET", "/metrics").body)
        process.send_signal(signal.SIGTERM)
        until(lambda: not listens(port))
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def listening(port: int) -> int:
    """How many sockets listen there."""
    told = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "0A" for line in told)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 30).close()
    except OSError:
        return False
    return True


def test_a_worker_whose_parent_is_gone_before_it_begins_ends(bundle: Path) -> None:
    with listen("127.0.0.1", 0) as opened:
        settings = Settings(str(bundle), device="cpu", threads=1)
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        number = opened.fileno()
        told = (settings.to_json(), str(number), "quiet", str(gone.pid))
        command = child_command("cir_infer.serving.worker", *told)
        worker = subprocess.Popen(command, env=child_environment(), pass_fds=(number,))
        try:
            worker.wait(120)
        finally:
            worker.kill()
            worker.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_one_process_ends_when_it_is_told_to(bundle: Path, number: int, code: int) -> None:
    with command(bundle, "--log-queries") as (client, process):
        assert client("POST", "/v1/search", QUERY).status == 200
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        assert "is red" in said


@pytest.mark.parametrize("asked", [(), ("--workers", "2"), ("--log-queries",)])
def test_no_text_is_logged_unless_that_is_wanted(bundle: Path, asked: tuple[str, ...]) -> None:
    """Nor a word that the model does not know, which the answer names."""
    with command(bundle, *asked) as (client, process):
        found = client("POST", "/v1/search", {**QUERY, "text": "is purplish"})
        assert found.status == 200 and found.json["unknown_words"] == ["purplish"]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert ("purplish" in said) == ("--log-queries" in asked), said
        assert "/v1/search" in said


def test_keys_that_others_can_read_are_told_once(bundle: Path, tmp_path: Path) -> None:
    """Each worker reads them, and who started it does before."""
    keys = tmp_path / "keys"
    keys.write_text("k" * 24)
    keys.chmod(0o644)
    with command(bundle, "--workers", "2", "--api-key-file", str(keys)) as (_, process):
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert said.count("can be read by other users of this machine; chmod 600 it") == 1, said


def test_what_workers_meet_while_they_open_a_bundle_is_told_once(bundle: Path, tmp_path: Path) -> None:
    """Each opens it by itself; of what they do later each tells."""
    place = write_tiny_bundle(
        tmp_path / "shop.cir", precision="int8", parity={"precision": {"form": "tensorrt"}}
    )
    gallery = str(bundle.with_suffix(".gallery"))
    with command(place, "--workers", "3", "--gallery", gallery) as (client, process):
        assert client("POST", "/v1/search", QUERY).status == 200
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert said.count("which the CPU runs slower than float32") == 1 and "/v1/search" in said, said


def counted(client: Client) -> float:
    """Searches, as the metrics have them."""
    lines = client("GET", "/metrics").body.decode().splitlines()
    found = [line for line in lines if line.startswith("cir_requests_total{") and "search" in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[1]) == parent and stat[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def until(true: Any) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["gone.cir"], 1, "gone.cir"),
        (["BUNDLE", "--gallery", "gone.gallery"], 1, "gone.gallery"),
        (["BUNDLE", "--host", "0.0.0.0"], 2, "--api-key-file"),
        (["BUNDLE", "--api-key-file", "gone.txt"], 2, "gone.txt"),
        (["BUNDLE", "--port", "70000"], 2, "--port"),
        (["BUNDLE", "--host", "no such host"], 2, "--host"),
        (["BUNDLE", "--host", "192.0.2.1", "--no-auth"], 1, "cannot listen"),
        (["BUNDLE", "--max-k", "0"], 2, "--max-k"),
        (["BUNDLE", "--allow-origin", "shop.example"], 2, "--allow-origin is 'shop.example'"),
        (["BUNDLE", "--allow-origin", "https://shop.example/"], 2, "up to the path"),
        (["BUNDLE", "--allow-host", "https://shop.example"], 2, "--allow-host is 'https://shop.example'"),
        (["BUNDLE", "--allow-host", "shop.example:8080"], 2, "a name alone"),
    ],
)
def test_what_is_wrong_is_one_line(
    bundle: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, said: str
) -> None:
    assert main([str(bundle) if flag == "BUNDLE" else flag for flag in flags]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("try")
    made.add_argument("bundle", help="it")
    made.add_argument("--port", type=int, default=1)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--no-auth", action="store_true")
    made.add_argument("--log", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--allow-host", dest="allow", action="append", default=[])
    made.add_argument("--no-page", dest="page", action="store_false")
    made.add_argument("--writable", action="store_true")
    made.add_argument("--read-only", dest="writable", action="store_false")
    made.set_defaults(writable=False)
    return made


@pytest.mark.parametrize(
    "flag", ["--max-upload=inf", "--max-pixels=-1e999", "--max-upload=nan", "--max-k=inf"]
)
def test_what_is_no_number_is_wrong_usage(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["a.cir", flag])
    assert raised.value.code == 2
    assert "invalid number value" in capsys.readouterr().err


def test_every_flag_is_a_variable() -> None:
    given = {
        "T_BUNDLE": "a.cir",
        "T_PORT": "9",
        "T_DEVICE": "cuda",
        "T_NO_AUTH": "yes",
        "T_LOG": "false",
        "T_ALLOW_HOST": "a, b",
        "T_NO_PAGE": "true",
        "T_READ_ONLY": "false",
    }
    made = parser()
    take_environment(made, "T", given)
    told = vars(made.parse_args([]))
    assert told == {
        "bundle": "a.cir",
        "port": 9,
        "device": "cuda",
        "no_auth": True,
        "log": False,
        "allow": ["a", "b"],
        "page": False,
        "writable": True,
    }
    assert vars(made.parse_args(["b.cir", "--port", "7", "--log"])) == told | {
        "bundle": "b.cir",
        "port": 7,
        "log": True,
    }


@pytest.mark.parametrize(
    ("name", "text", "log"),
    [("T_LOG", "1", True), ("T_NO_LOG", "on", False), ("T_NO_LOG", "0", True), ("T_LOG", "", False)],
)
def test_both_names_of_a_switch_are_variables(name: str, text: str, log: bool) -> None:
    made = parser()
    take_environment(made, "T", {name: text})
    assert made.parse_args(["a.cir"]).log is log


@pytest.mark.parametrize("wrong", [{"T_PORT": "x"}, {"T_DEVICE": "tpu"}, {"T_NO_AUTH": "perhaps"}])
def test_a_wrong_variable_is_named(wrong: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        take_environment(parser(), "T", wrong)
    assert raised.value.code == 2
    assert f"${next(iter(wrong))}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("T_PROT", "did you mean $T_PORT?"),
        ("T_NO_PAGES", "did you mean $T_NO_PAGE?"),
        ("T_x" + "y" * 100_000, "--help lists them"),
        ("T_", "--help lists them"),
    ],
)
def test_a_variable_that_no_flag_has_is_refused(
    name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was passed over: a service that was to be written to, or to hear another port, did not."""
    with pytest.raises(SystemExit) as raised:
        take_environment(parser(), "T", {name: "1", "T_PORT": "9"})
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert told in said and len(said) < 1000


def test_what_kubernetes_says_of_a_service_is_not_taken_for_flags(capsys: pytest.CaptureFixture[str]) -> None:
    of_it = {
        "T_SERVICE_HOST": "10.0.0.1",
        "T_SERVICE_PORT": "80",
        "T_SERVICE_PORT_HTTP": "80",
        "T_PORT_80_TCP": "tcp://10.0.0.1:80",
        "T_PORT_80_TCP_ADDR": "10.0.0.1",
        "TOTAL": "1",
    }
    made = parser()
    take_environment(made, "T", of_it)
    assert vars(made.parse_args(["a.cir"])) == vars(parser().parse_args(["a.cir"]))
    with pytest.raises(SystemExit):
        take_environment(parser(), "T", of_it | {"T_PORT": "tcp://10.0.0.1:80"})
    assert "Kubernetes says it of a Service of this name" in capsys.readouterr().err
