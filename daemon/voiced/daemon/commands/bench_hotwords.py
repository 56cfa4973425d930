"""`voiced bench hotwords`: what hotwords find, invent and cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from voiced.bench import hotwords as bench
from voiced.bench.corpus import load_corpus
from voiced.bench.errors import CorpusError
from voiced.bench.machine import describe
from voiced.bench.normalise import best_normaliser
from voiced.bench.report import Report, progress, publish
from voiced.daemon.commands.engines import engine_config
from voiced.engine.families.fireredasr_recognizer import FireRedRecognizer
from voiced.engine.families.whisper_recognizer import WhisperRecognizer
from voiced.engine.recognizer import load_recognizer
from voiced.engine.types import RequestKind


def hotwords(
    folder: Path,
    *,
    bonuses: Sequence[float],
    phrases: Path | None = None,
    more: Path | None = None,
    half: str | None = None,
    sets: Sequence[str] = (),
    is_greedy: bool = False,
    model: str | None = None,
    json_path: Path | None = None,
) -> int:
    """Print recall, insertions and errors for each bonus; return 0.

    Args:
        folder: Recordings with texts.
        bonuses: What is tried; 0 is without hotwords.
        phrases: One a line; those that a clip says are kept. None: the rare words of the texts.
        more: Phrases that nobody says, one a line.
        half: Only these clips, `a` or `b`.
        sets: Only these sets.
        is_greedy: Measure partials.
        model: Bundle name or folder.
        json_path: Where to write all figures.

    Raises:
        CorpusError, EngineError, AudioError, OSError: Nothing can be measured.
    """
    machine = describe()
    found = [
        clip
        for clip in load_corpus(folder, sets=sets)
        if clip.text and clip.language and clip.is_speech and half in (None, bench.half_of(clip))
    ]
    with closing(load_recognizer(engine_config(model))) as recognizer:
        if not isinstance(recognizer, WhisperRecognizer | FireRedRecognizer):
            raise CorpusError(
                f"{recognizer.info.bundle} has no hotwords, expected a model of the family "
                "whisper or fireredasr; choose one with --model"
            )
        longest_s = recognizer.info.max_segment_s
        clips = [clip for clip in found if clip.seconds < longest_s]
        if phrases is None:
            chosen = bench.rare_words(clips, recognizer.model.spelling.tokens_of)
        else:
            texts = "\n".join(clip.text or "" for clip in clips)
            chosen = [phrase for phrase in _lines(phrases) if phrase in texts]
        if not chosen:
            raise CorpusError("no clip says any of the phrases")
        listed = chosen + ([] if more is None else _lines(more))
        kind = RequestKind.PARTIAL if is_greedy else RequestKind.FINAL
        with progress(len(clips), "clips") as advance:
            heard = bench.measure(
                clips, recognizer, listed, bonuses, best_normaliser(), advance, kind=kind
            )
        bundle = recognizer.info.bundle
    title = f"{len(clips)} clips, {len(listed)} phrases"
    settings = {"bundle": bundle, "half": half or "both", "kind": kind.value, "phrases": listed}
    report = Report("hotwords", settings, [bench.table(heard, title)], heard, machine)
    publish(report, json_path=json_path)
    return 0


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
