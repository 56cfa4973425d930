"""`voiced bench decode`: what a decoder step costs when utterances share it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from voiced.bench import decoding
from voiced.bench.corpus import load_corpus
from voiced.bench.machine import describe
from voiced.bench.report import Report, progress, publish
from voiced.bench.systems import read_pcm
from voiced.daemon.commands.demo import fetch_clips
from voiced.daemon.commands.engines import engine_config
from voiced.engine.batch import Lockstep, batch_of
from voiced.engine.errors import BackendUnavailable
from voiced.engine.recognizer import load_recognizer

_SECONDS, _SHORT_S, _LONG_S = 3.0, 1.5, 12.0
_MOST_MIXED = 4
"""Utterances of the largest mixed arrangement."""


def decode(
    *,
    sizes: tuple[int, ...] = (1, 2, 4, 8),
    rounds: int = 10,
    model: str | None = None,
    threads: int = 1,
    beam: int | None = None,
    json_path: Path | None = None,
) -> int:
    """Print the cost of shared decoder steps; return 0.

    Args:
        sizes: Utterances in a batch.
        rounds: Runs of each arrangement.
        model: Bundle name or folder.
        threads: Threads of one graph call.
        beam: Hypotheses of finals; None: as published with the model.
        json_path: Where to write all figures.

    Raises:
        CorpusError, EngineError, AudioError, OSError: Nothing can be measured.
    """
    machine = describe()
    config = engine_config(model, threads=threads, beam=beam)
    config = replace(config, max_batch=max(*sizes, _MOST_MIXED))
    folder = fetch_clips(print)
    speech = max(
        (clip for clip in load_corpus(folder) if clip.language == "en"), key=lambda c: c.seconds
    )
    arrangements = decoding.plan(sizes, _SECONDS, _SHORT_S, _LONG_S)
    with closing(load_recognizer(config)) as recognizer:
        batch = batch_of(recognizer)
        if isinstance(batch, Lockstep):
            raise BackendUnavailable(
                f"{recognizer.info.bundle} is decoded in lockstep, expected a bundle whose "
                "segments share a decoder; `voiced model build --force` makes one"
            )
        with progress(rounds * len(arrangements), "arrangements") as advance:
            costs = decoding.measure(
                batch, arrangements, read_pcm(speech.path), rounds=rounds, advance=advance
            )
        settings = {"bundle": recognizer.info.bundle, "threads": threads, "rounds": rounds}
    report = Report("decode", settings, decoding.tables(costs), costs, machine)
    publish(report, json_path=json_path)
    return 0
