"""`voiced bench partials` and `vad`: the daemon's real time, measured in simulated time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from voiced.audio.front import FrontSettings
from voiced.audio.vad import VadFactory, VadKind, VadModel
from voiced.bench import accuracy
from voiced.bench import partials as partials_bench
from voiced.bench import vad as vad_bench
from voiced.bench.corpus import Clip, load_corpus
from voiced.bench.errors import CorpusError, PeerUnavailable
from voiced.bench.machine import describe
from voiced.bench.normalise import best_normaliser
from voiced.bench.replay import Replay
from voiced.bench.report import Report, progress, publish
from voiced.bench.systems import read_clip, to_float
from voiced.daemon.commands.engines import engine_config
from voiced.daemon.config import flags_of
from voiced.daemon.config import load as load_config
from voiced.daemon.part_settings import front_defaults, session_settings
from voiced.daemon.settings import Settings
from voiced.engine import store
from voiced.engine.recognizer import load_recognizer

PEER_DETECTORS: dict[str, Callable[[], VadModel]] = {"firered": vad_bench.FireRedVad}
AT_END, BEGUN_EARLY = "at the end", "begun early"


def partials(
    folder: Path,
    *,
    sets: Sequence[str] = (),
    limit: int | None = None,
    assignments: Sequence[str] = (),
    slowdown: float = 1.0,
    model: str | None = None,
    backend: str | None = None,
    language: str | None = None,
    json_path: Path | None = None,
) -> int:
    """Print delays and stability of partials and finals; return 0.

    Args:
        folder: Recordings with texts, in a layout of `voiced.bench.corpus`.
        sets: Only these sets; empty for all.
        limit: At most this many clips of each set.
        assignments: `section.key=value`: settings to measure instead of the defaults.
        slowdown: Factor on the CPU time of each request.
        model: Bundle name or folder.
        backend: Runtime of the bundle's graphs.
        language: Language of folders that do not name one.
        json_path: Where to write all figures and texts.

    Raises:
        CorpusError, ConfigError, EngineError, AudioError, OSError: Nothing can be measured.
    """
    settings = _settings(assignments)
    corpus = load_corpus(folder, sets=sets, limit=limit, language=language)
    clips = [clip for clip in accuracy.usable(corpus) if clip.is_speech]
    machine = describe()
    config = engine_config(
        model, backend, threads=settings.engine.threads, beam=settings.engine.beam
    )
    normaliser, vads = best_normaliser(), VadFactory(store.silero_path())
    recognizer = load_recognizer(config)
    front = front_defaults(settings.vad)
    policies: list[tuple[str, list[partials_bench.Heard]]] = []
    costs: dict[str, dict[str, list[float]]] = {}
    with closing(recognizer):
        recognizer.warm(lambda _: None)
        for name in (AT_END, BEGUN_EARLY):
            replay = Replay(
                recognizer,
                vads,
                front=replace(front, eager_ms=0) if name == AT_END else front,
                # The session's time-outs are of the wall clock; in simulated time none is meant.
                session=replace(
                    session_settings(settings),
                    publishes_eager=True,
                    partial_timeout_s=3_600.0,
                    final_timeout_s=3_600.0,
                ),
                kind=VadKind(settings.vad.kind),
                slowdown=slowdown,
            )
            heard = []
            with progress(len(clips), name) as advance:
                for number, clip in enumerate(clips):
                    played = replay.play(read_clip(clip), clip.language, seed=number)
                    heard.append(partials_bench.hear(clip, played, normaliser))
                    advance(clip.id)
            policies.append((name, heard))
            costs[name] = {kind.value: each for kind, each in replay.costs_ms.items()}
    shown: dict[str, Any] = {
        "bundle": recognizer.info.bundle,
        "beam": config.beam,
        "threads": config.threads,
        "slowdown": slowdown,
        "language": "pinned per clip",
        "normaliser": normaliser.name,
        "vad": settings.vad.model_dump(),
    }
    tables = [*partials_bench.tables(policies), partials_bench.cost_table(costs)]
    result = {"policies": dict(policies), "costs_ms": costs}
    publish(Report("partials", shown, tables, result, machine), json_path=json_path)
    return 0


def vad(
    folder: Path,
    *,
    sets: Sequence[str] = (),
    limit: int | None = 20,
    peers: Sequence[str] = (),
    seed: int = 0,
    json_path: Path | None = None,
) -> int:
    """Print what endpointing does in noise, detector by detector; return 0.

    Args:
        folder: Recordings, in a layout of `voiced.bench.corpus`; the noise is among them.
        sets: Only the speech of these sets; empty for all.
        limit: At most this many clips of each set of speech.
        peers: Other detectors to compare with, of `PEER_DETECTORS`.
        seed: Of the mixtures.
        json_path: Where to write all figures.

    Raises:
        CorpusError, PeerUnavailable, AudioError, OSError: Nothing can be measured.
    """
    unknown = [name for name in peers if name not in PEER_DETECTORS]
    if unknown:
        known = ", ".join(PEER_DETECTORS)
        raise PeerUnavailable(f"no detector {', '.join(unknown)}; expected one of {known}")
    machine = describe()
    corpus = load_corpus(folder)
    taken: dict[str, int] = {}
    speech: list[Clip] = []
    for clip in corpus:
        if clip.is_speech and (not sets or clip.set in sets):
            taken[clip.set] = taken.get(clip.set, 0) + 1
            if limit is None or taken[clip.set] <= limit:
                speech.append(clip)
    noise = [clip for clip in corpus if not clip.is_speech and clip.set == "noise"]
    if not speech or not noise:
        raise CorpusError(f"{folder}: expected clips of speech, and of noise in the set `noise`")
    vads = VadFactory(store.silero_path())
    detectors: list[tuple[str, Callable[[], VadModel]]] = [
        (kind.value, functools.partial(vads.make, kind)) for kind in VadKind
    ]
    detectors += [(name, PEER_DETECTORS[name]) for name in peers]
    for _, make in detectors:
        make()  # what is missing is said before the work
    with progress(len(speech) * len(vad_bench.SNRS_DB), "mixtures") as advance:
        rows = vad_bench.measure(
            [to_float(read_clip(clip)) for clip in speech],
            [to_float(read_clip(clip)) for clip in noise],
            detectors,
            settings=FrontSettings(grown_ms=0),
            advance=advance,
            seed=seed,
        )
    shown = {"clips": len(speech), "noises": len(noise), "seed": seed}
    publish(Report("vad", shown, [vad_bench.table(rows)], rows, machine), json_path=json_path)
    return 0


def _settings(assignments: Sequence[str]) -> Settings:
    """The defaults with `section.key=value` on top; files and the environment do not count."""
    flags = flags_of(assignments, "--with")
    return load_config(environment={"VOICED_CONFIG": "/dev/null"}, flags=flags).settings
