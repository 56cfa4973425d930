"""Published errors on the public test sets, to stand beside ours.

CER in % for Mandarin, WER in % for LibriSpeech, as the READMEs of FireRedASR and FireRedASR2S state
them. Their normalisation is not ours: an English word inside Mandarin is one unit there, here each
of its letters is one. Compare tenths, not hundredths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from voiced.bench.accuracy import GroupResult
from voiced.bench.report import Table

SYSTEMS = (
    "FireRedASR-AED",
    "FireRedASR2-AED",
    "Paraformer-Large",
    "SenseVoice-L",
    "Whisper-large-v3",
)

FIGURES: Mapping[str, tuple[float | None, ...]] = {
    "aishell1-test": (0.55, 0.57, 1.68, 2.09, 5.14),
    "aishell2-test-ios": (2.52, 2.51, 2.85, 3.04, 4.96),
    "wenetspeech-test-net": (4.88, 4.57, 6.74, 6.01, 10.48),
    "wenetspeech-test-meeting": (4.76, 4.53, 6.97, 6.73, 18.87),
    "kespeech-test": (4.48, 3.60, None, None, None),
    "librispeech-test-clean": (1.93, None, None, None, None),
    "librispeech-test-other": (4.44, None, None, None, None),
}
"""Set → one figure per system."""


def published_table(results: Mapping[str, Sequence[GroupResult]]) -> Table | None:
    """Put systems measured here beside the published ones; None where no set has figures.

    Args:
        results: System → its figures per set.
    """
    measured = {
        result.group: result
        for groups in results.values()
        for result in groups
        if result.group in FIGURES
    }
    if not measured:
        return None
    by_system = {
        name: {result.group: result.error.value for result in groups}
        for name, groups in results.items()
    }
    rows = tuple(
        (
            name,
            measured[name].unit,
            str(measured[name].clips),
            *(f"{rates[name]:.2f}" for rates in by_system.values()),
            *("-" if figure is None else f"{figure:.2f}" for figure in FIGURES[name]),
        )
        for name in FIGURES
        if name in measured
    )
    return Table(
        "beside the published figures, %",
        ("set", "unit", "clips", *by_system, *SYSTEMS),
        rows,
        ("published: READMEs of FireRedASR and FireRedASR2S, whole sets, their normalisation",),
    )
