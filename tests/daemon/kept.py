"""Last words and segments for tests of what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voiced.audio.frames import Segment
from voiced.daemon.journal import Record
from voiced.daemon.journal_reader import JournalReader
from voiced.daemon.spool import Heard
from voiced.daemon.wire import Alternative, Final

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def final(
    seq: int,
    *,
    epoch: str = "e1",
    segment: int | None = None,
    text: str = "open the window",
    wall_ms: int = NOW_MS,
    recovered: str | None = None,
    stream: str = "desk",
) -> Record:
    return Record(
        Final(
            stream=stream, epoch=epoch, seq=seq, wall_ms=wall_ms, segment=segment or seq,
            revision=1, text=text, language="en", confidence=0.9, start_ms=0, end_ms=900,
            latency_ms=10, n_best=(Alternative(text, -0.1),), recovered=recovered,
        )
    )  # fmt: skip


def places(path: Path, **query: object) -> list[tuple[str, int]]:
    with JournalReader(path) as reader:
        return [(each.epoch, each.seq) for each in reader.read(**query).entries]  # type: ignore[arg-type]


def heard(
    segment: int = 1, *, origin: str = "e1", stream: str = "desk", samples: int = 1_600
) -> Heard:
    pcm = np.random.default_rng(segment).integers(-9_000, 9_000, samples).astype(np.int16)
    return Heard(Segment(segment, stream, 320, pcm, "en"), origin, 3, 1_700_000_000_000)
