"""`voiced bench interruptions`: a start, a killed worker and a stop, timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.bench import interruptions as bench
from voiced.bench.corpus import Clip, load_corpus
from voiced.bench.errors import CorpusError
from voiced.bench.machine import describe
from voiced.bench.report import Report, progress, publish
from voiced.bench.systems import read_clip
from voiced.daemon.commands.bench import _folder
from voiced.daemon.exit_status import EXIT_FAILED, EXIT_OK

_PAUSE_S = 1.2
"""Between two clips: ends a segment, whatever was said."""
_CLIPS = 12
"""That each stream has."""


def interruptions(
    *,
    clips: Path | None = None,
    sets: Sequence[str] = (),
    streams: int = 4,
    rounds: int = 3,
    model: str | None = None,
    json_path: Path | None = None,
) -> int:
    """Print what they cost; return 0 when everything was answered, else 1.

    Raises:
        CorpusError, FetchError, AudioError, NotInterrupted, OSError: Nothing can be measured.
    """
    machine = describe()
    folder = _folder(clips)
    spoken = [clip for clip in load_corpus(folder, sets=sets) if clip.is_speech]
    if not spoken:
        raise CorpusError("no speech clip among the recordings")
    speech = [_speech(spoken, number, streams) for number in range(streams)]
    with progress(rounds, "interruptions") as advance:
        result = bench.run(
            speech,
            rounds=rounds,
            arguments=() if model is None else ("--model", model),
            advance=advance,
        )
    settings = {"speech": f"clips of {folder.name}", "streams": streams, "rounds": rounds}
    publish(
        Report("interruptions", settings, [result.table()], result, machine), json_path=json_path
    )
    return EXIT_OK if result.is_good else EXIT_FAILED


def _speech(clips: Sequence[Clip], number: int, streams: int) -> bytes:
    """Some clips with pauses; each stream begins at another one."""
    chosen = [
        clips[(number * len(clips) // streams + place) % len(clips)] for place in range(_CLIPS)
    ]
    pause = np.zeros(round(_PAUSE_S * RATE_HZ), np.int16)
    return np.concatenate([part for clip in chosen for part in (read_clip(clip), pause)]).tobytes()
