"""The metrics, and counts of several workers, read while they begin and end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cir_infer.processes.children import child_environment
from cir_infer.serving.metrics import Metrics
from tests.serving.asking import QUERY
from tests.serving.support import Client

COUNTS = """
from cir_infer.serving.metrics import Metrics
found = Metrics()
for _ in range(3):
    found.requests.labels("/v1/search", "POST", "200").inc()
found.rows.set(7)
"""


def test_a_worker_that_has_only_just_begun_hides_no_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that was killed as it began: its files exist, and nothing is in them yet."""
    for _ in range(2):
        environment = child_environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        subprocess.run([sys.executable, "-c", COUNTS], env=environment, check=True)
    for name in ("counter_1.db", "histogram_1.db", "gauge_livesum_1.db"):
        (tmp_path / name).touch()
    (tmp_path / "gauge_livemax_2.db").symlink_to(tmp_path / "gone")  # as one that ended since it was listed
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    text = Metrics().text()[0].decode()
    assert 'cir_requests_total{method="POST",route="/v1/search",status="200"} 6.0' in text
    assert "cir_gallery_rows 7.0" in text


def test_metrics_are_prometheus(client: Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client("POST", "/v1/search", QUERY)
    answer = client("GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert {"cir_requests", "cir_request_seconds", "cir_stage_seconds", "cir_batch_queries"} <= set(families)
    assert families["cir_gallery_rows"].samples[0].value == 40
    stages = {sample.labels["stage"] for sample in families["cir_stage_seconds"].samples}
    assert stages == {"decode", "wait", "search"}
