"""The clients of docs/serving.md, run as they stand there; and what deploy/ says, held to what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.support import Client, Running, png

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text("utf-8")


def block(language: str, port: int) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return found.replace("127.0.0.1:8080", f"127.0.0.1:{port}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dress.jpg").write_bytes(png(8))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(client: Client) -> list[str]:
    fields = [("text", "is red"), ("k", "5")]
    return [hit["id"] for hit in client.form("/v1/search", fields, png(8)).json["hits"]]


def test_python(client: Client, folder: Path) -> None:
    said = run([sys.executable, "-c", block("py", client.port)], folder)
    best = expected(client)[0]
    better = client.search(item=best, text="longer", k=5, exclude=[best]).json
    assert said.strip() == str([hit["id"] for hit in better["hits"]])


def test_curl(client: Client, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    lines = block("bash", client.port).strip().splitlines()
    told = [run(["bash", "-c", line], folder) for line in lines if "--json" not in line or modern_curl()]
    assert [hit["id"] for hit in json.loads(told[0])["hits"]] == expected(client)
    assert (folder / "sku-1.jpg").read_bytes()[:2] == b"\xff\xd8"


def modern_curl() -> bool:
    """--json came with curl 7.82."""
    version = re.search(
        r"curl (\d+)\.(\d+)", subprocess.run(["curl", "-V"], capture_output=True, text=True).stdout
    )
    return version is not None and (int(version[1]), int(version[2])) >= (7, 82)


def test_javascript(client: Client, folder: Path) -> None:
    node = shutil.which("node")
    if node is None or int(run([node, "-p", "process.versions.node.split('.')[0]"], folder)) < 20:
        pytest.skip("needs Node 20 or newer")
    (folder / "client.mjs").write_text(block("js", client.port))
    assert json.loads(run([node, "client.mjs"], folder)) == expected(client)


# ---- deploy/


def test_the_dashboard_asks_for_metrics_that_there_are(served: Running) -> None:
    served.client.search(item="sku-1", text="is red")
    served.service.metrics.refusals.labels("x")
    text = served.client("GET", "/metrics").body.decode()
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"cir_\w+", target["expr"])
    }
    assert len(asked) > 10
    known = families | {f"{name}{part}" for name in families for part in ("_bucket", "_sum", "_count")}
    assert asked <= known
    named = {part.split("{")[0] for part in re.findall(r"`(cir_[\w{}, ]+)`", TEXT)}
    assert named <= families


@pytest.mark.parametrize("name", ["Dockerfile", "cir-serve.service"])
def test_variables_and_flags_of_deploy_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from cir_infer.commands.serve import main

    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--([a-z][a-z-]+)", capsys.readouterr().out))
    known = {f"CIR_SERVE_{flag.upper().replace('-', '_')}" for flag in flags}
    text = (ROOT / "deploy" / name).read_text()
    used = set(re.findall(r"CIR_SERVE_[A-Z_]+", text))
    assert used and used <= known, used - known
