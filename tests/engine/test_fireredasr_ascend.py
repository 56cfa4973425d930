"""FireRedASR at its released number of layers fits what an Ascend converter takes, when stacked."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.tiny_fireredasr import Tiny

from voiced.engine.build.fireredasr_bundle import Form
from voiced.engine.build.graph import Precision
from voiced.engine.build.mindspore.ascend import Work, plan_work
from voiced.engine.build.mindspore.ascend_config import (
    VARIANTS,
    Chip,
    ConversionRefused,
    variant_options,
)
from voiced.engine.bundle import Bundle
from voiced.engine.types import Gear

DEEP = Tiny(1, 2, d_model=16, heads=2, layers=16)


def planned(folder: Path, form: Form) -> list[Work]:
    bundle = Bundle.open(build_bundle(folder, DEEP, form, gears_s=(1, 2)))
    (chosen,) = (each for each in VARIANTS if each.name == "plain")
    return plan_work(
        bundle,
        [Gear(100), Gear(200)],
        lambda graph: variant_options(graph, Chip.ASCEND_910B, chosen),
        lambda _: None,
    )


def test_sixteen_layers_convert_with_several_gears_when_stacked(tmp_path: Path) -> None:
    work = planned(tmp_path / "half", Form(Precision.FP16, resident=True, stacked=True))
    assert [each.role for each in work] == ["prefill", "step"]
    assert all(len(each.graph.gears) == 2 and each.graph.body == "fp16" for each in work)
    assert work[0].graph.relative_bias


def test_sixteen_layers_by_themselves_have_too_many_axes(tmp_path: Path) -> None:
    with pytest.raises(ConversionRefused, match=r"dimensions over .* inputs"):
        planned(tmp_path / "plain", Form(resident=True))
