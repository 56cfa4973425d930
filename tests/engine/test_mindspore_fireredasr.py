"""A portable FireRedASR bundle, converted, finds the official tokens with MindSpore Lite too."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.fireredasr_cases import (
    FRAMES,
    LENGTH_PENALTY,
    MODELS,
    SEARCHES,
    stored_goldens,
    utterance_seed,
)
from tests.engine.tiny_fireredasr import features

from voiced.engine.backends.mindspore_lite.backend import CPU_TARGET, MsliteBackend
from voiced.engine.build.fireredasr_bundle import Form
from voiced.engine.build.mindspore.convert import choose_gears, convert_bundle
from voiced.engine.build.mindspore.tools import find_converter
from voiced.engine.bundle import Bundle
from voiced.engine.families.fireredasr_model import FireRedModel

TINY = MODELS[5]
"""Version 2: prefill has the CTC head too. One thread: the runtime's layer norm is wrong for narrow
models with two."""


def test_a_converted_bundle_finds_the_official_tokens(mslite_python: Path, tmp_path: Path) -> None:
    folder = build_bundle(tmp_path / TINY.name, TINY, Form(resident=True), gears_s=(1,))
    bundle = Bundle.open(folder)
    goldens = stored_goldens()[TINY.name]["utterances"]
    with closing(MsliteBackend(python=mslite_python, deadline_s=60.0)) as backend:
        gears = choose_gears(bundle, (1,))
        convert_bundle(bundle, gears, find_converter(mslite_python), backend, lambda _: None)
        bundle = Bundle.open(folder)
        artifacts = bundle.target(CPU_TARGET).artifacts
        assert {a.role for a in artifacts} == {"prefill", "step"}
        assert all(a.parity.samples >= 2 and all(a.parity.ids_equal.values()) for a in artifacts)

        model = FireRedModel(
            folder, bundle.narrowed(CPU_TARGET).manifest, backend, threads=1, max_batch=1
        )
        (gear,) = model.gears
        asked = [index for index, frames in enumerate(FRAMES) if frames <= gear.frames]
        assert len(asked) > 10
        for index in asked:
            with model.lend(gear) as loan:
                loan.prefill([features(utterance_seed(TINY, index), FRAMES[index])])
                found = model.decode(
                    loan, [FRAMES[index]], beam=3, eos_penalty=1.0, length_penalty=LENGTH_PENALTY
                )
                ctc = loan.ctc(0)
            assert np.abs(np.exp(ctc).sum(axis=1) - 1).max() < 1e-4
            official = goldens[index]["searches"][SEARCHES[1].name]["tokens"]
            assert found[0].hypotheses[0].tokens == tuple(official[0]), index
