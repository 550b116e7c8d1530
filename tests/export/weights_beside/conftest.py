"""One model with its weights beside the graphs and inside them."""

from __future__ import annotations

import functools
import weakref
from pathlib import Path

import pytest

from cir_export.export import export_bundle
from cir_export.precision.writing import write_with
from cir_export.weights import WeightsFile
from cir_infer.bundle import Bundle
from tests.export.test_export import trained
from tests.export.test_in_parts import samples
from tests.export.weights_beside.bundles import LARGE, Exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("beside")
    model = trained()
    weights = {name: weakref.ref(value) for name, value in model.model.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cir_export.export.WeightsFile", functools.partial(WeightsFile, large=LARGE))
        beside, inner = folder / "beside.cir", folder / "inside.cir"
        # Held against PyTorch there.
        export_bundle(model, beside, samples(model), large=0, keep_model=False)
    bundle = Bundle(beside)
    write_with(bundle, inner, bundle.manifest, {}, large=1 << 40)
    return Exported((inner, beside), model, weights)


@pytest.fixture
def pair(exported: Exported) -> tuple[Path, Path]:
    return exported.pair
