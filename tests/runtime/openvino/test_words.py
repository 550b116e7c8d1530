"""OpenVINO's words for what a process lacks, told in ours."""

from __future__ import annotations

import pytest

from cir_infer.extras import is_installed

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)

from cir_infer.runtime.openvino.api import told


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Exception from src/inference/src/cpp/infer_request.cpp:224:\nCaught exception: Exception from "
            "src/plugins/intel_cpu/src/node.cpp:823:\n[CPU] Add node with name 'node_Add_18' can't alloc\n\n",
            "there is no memory left",
        ),
        ("Resource temporarily unavailable", "no thread can be started now"),
        ("Exception from src/a.cpp:5:\nResource temporarily unavailable is an odd name", "an odd name"),
    ],
)
def test_what_it_lacks_is_told_in_words(said: str, expected: str) -> None:
    """As it was seen to say under a limit of memory."""
    assert expected in told(RuntimeError(said))
