"""The golden pair: a question with a known answer that every bundle carries.

The answer was computed on the machine that built the bundle. Another CPU rounds int8 products in
another order, so numbers are compared with a tolerance and the best tokens as a set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Backend
from voiced.engine.buffers import Float
from voiced.engine.bundle import Bundle, Manifest, how_to_rebuild
from voiced.engine.errors import BundleError
from voiced.engine.types import Gear

GOLDEN_INPUT = "golden-input.npz"
GOLDEN_OUTPUT = "golden-output.npz"

TOLERANCE = 0.05
"""Largest allowed error, relative to the largest value of the tensor."""

_FIRST = 5
"""Candidates for the first token that are stored."""

Answer = dict[str, npt.NDArray[Any]]


def answer(root: Path, manifest: Manifest, pcm: npt.NDArray[np.int16], backend: Backend) -> Answer:
    """Run both graphs of a bundle over int16[n] at the smallest gear and sample what they say.

    Returns:
        `cross_k`, `cross_v`: every 8th value of the first layer; `scores` float32[k] and `tokens`
        int32[k]: the first token's candidates, best first.
    """
    gear = Gear(min(g.frames for g in manifest.gears))
    ask = _ask_fireredasr if manifest.family == "fireredasr" else _ask_whisper
    k, v, scores, tokens = ask(root, manifest, pcm, backend, gear)
    return {"cross_k": k[::8].copy(), "cross_v": v[::8].copy(), "scores": scores, "tokens": tokens}


_Asked = tuple[Float, Float, Float, npt.NDArray[np.int32]]


def _ask_whisper(
    root: Path, manifest: Manifest, pcm: npt.NDArray[np.int16], backend: Backend, gear: Gear
) -> _Asked:
    from voiced.engine.families.whisper_model import WhisperModel

    model = WhisperModel(root, manifest, backend, threads=1, max_batch=1, max_beam=1)
    with model.lend(gear) as loan:
        loan.prefill([model.features(pcm, gear)])
        scores, tokens = model.first_tokens(loan, language=model.languages[0], top=_FIRST)
        return *loan.sample(), scores, tokens


def _ask_fireredasr(
    root: Path, manifest: Manifest, pcm: npt.NDArray[np.int16], backend: Backend, gear: Gear
) -> _Asked:
    from voiced.engine.families.fireredasr_model import FireRedModel

    model = FireRedModel(root, manifest, backend, threads=1, max_batch=1)
    with model.lend(gear) as loan:
        loan.prefill([model.features(pcm)[: gear.frames]])
        scores, tokens = model.first_tokens(loan, top=_FIRST)
        return *loan.sample(), scores, tokens


def check(bundle: Bundle, backend: Backend | None = None) -> str:
    """Ask the golden question and compare.

    Returns:
        One line that says how close the answer was.

    Raises:
        BundleError: The answer differs, or the bundle has no golden pair.
        BackendUnavailable, BackendFailed: It could not be asked.
    """
    pair = bundle.manifest.golden
    if pair is None:
        raise BundleError(bundle.root, found="no golden pair", expected="one in the manifest")
    if backend is None:
        from voiced.engine.backends.onnxruntime import OrtBackend

        backend = OrtBackend()
    with np.load(bundle.file(pair.input)) as question:
        found = answer(bundle.root, bundle.manifest, question["pcm"], backend)
    with np.load(bundle.file(pair.output)) as stored:
        expected = {name: stored[name] for name in stored.files}
    worst = 0.0
    for name in ("cross_k", "cross_v", "scores"):
        scale = float(np.abs(expected[name]).max())
        worst = max(worst, float(np.abs(found[name] - expected[name]).max()) / scale)
    if worst > TOLERANCE or found["tokens"][0] not in expected["tokens"][:2]:
        raise BundleError(
            bundle.file(pair.output),
            found=f"numbers off by {worst:.1%}, first token {found['tokens'][0]}",
            expected=f"at most {TOLERANCE:.0%} and token {expected['tokens'][0]}",
            next_step="the runtime computes wrongly here: "
            + how_to_rebuild(bundle.root.name, bundle.manifest.family),
        )
    return f"golden pair ok, largest error {worst:.2%}, first token as expected"
