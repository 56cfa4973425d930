"""The golden pair: a question with a known answer that every bundle carries.

The answer was computed on the machine that built the bundle. Features that differ in their last
bit, as they do from CPU to CPU, turn roundings of int8 graphs over, and those of the next layer:
1e-7 in the features of Whisper base makes 3.5 % in its keys and values (root mean square), 7 % in
the worst of them and 0.13 in log-probabilities. So numbers are compared as a whole and with a
tolerance, and the best tokens as a set.
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

TOLERANCE = 0.07
"""Largest allowed error of keys and values, root mean square, relative to theirs: twice what
roundings make."""

SCORE_TOLERANCE = 0.4
"""Largest allowed error of a candidate's log-probability: three times what roundings make."""

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
    off = {name: found[name] - expected[name] for name in ("cross_k", "cross_v", "scores")}
    worst = max(_size(off[name]) / _size(expected[name]) for name in ("cross_k", "cross_v"))
    score = float(np.abs(off["scores"]).max())
    is_close = worst <= TOLERANCE and score <= SCORE_TOLERANCE  # not so of what is no number
    if not is_close or found["tokens"][0] not in expected["tokens"][:2]:
        raise BundleError(
            bundle.file(pair.output),
            found=f"numbers off by {worst:.1%}, log-probabilities by {score:.2f}, "
            f"first token {found['tokens'][0]}",
            expected=f"at most {TOLERANCE:.0%} and {SCORE_TOLERANCE}, "
            f"token {expected['tokens'][0]}",
            next_step="the runtime computes wrongly here: "
            + how_to_rebuild(bundle.root.name, bundle.manifest.family),
        )
    return (
        f"golden pair ok, error {worst:.2%}, of log-probabilities {score:.2f}, "
        "first token as expected"
    )


def _size(values: npt.NDArray[Any]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
