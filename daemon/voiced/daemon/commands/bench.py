"""`voiced bench`: accuracy, speed against other recognisers, cost of everything else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from voiced.bench import accuracy as accuracy_bench
from voiced.bench import daemon_cost
from voiced.bench import frontend as frontend_bench
from voiced.bench import peers as peers_bench
from voiced.bench import systems as bench_systems
from voiced.bench.accuracy import Policy, policy_config
from voiced.bench.corpus import Clip, load_corpus
from voiced.bench.errors import CorpusError, PeerUnavailable
from voiced.bench.machine import describe
from voiced.bench.normalise import best_normaliser
from voiced.bench.public_sets import Layout
from voiced.bench.published import published_table
from voiced.bench.report import Report, Table, progress, publish
from voiced.bench.systems import (
    FASTER_WHISPER_OPTIONS,
    FasterWhisper,
    Segmentation,
    System,
    Voiced,
    ct2_folder,
)
from voiced.daemon.commands.engines import engine_config, family_of
from voiced.engine import store
from voiced.engine.errors import BackendUnavailable
from voiced.engine.families.whisper_recognizer import PUBLISHED_BEAM
from voiced.engine.types import EngineConfig

FASTER_WHISPER = "faster-whisper"
PEERS = (FASTER_WHISPER,)


def accuracy(
    folder: Path,
    *,
    sets: Sequence[str] = (),
    policy: Policy | None = None,
    limit: int | None = None,
    peers: Sequence[str] = (),
    model: str | None = None,
    backend: str | None = None,
    beam: int | None = None,
    threads: int = 1,
    language: str | None = None,
    layout: Layout = Layout.AUTO,
    weights: Path | None = None,
    json_path: Path | None = None,
) -> int:
    """Print word and character errors per set, and how they compare; return 0.

    Args:
        folder: Recordings with texts, in a layout of `voiced.bench.corpus`.
        sets: Only these sets; empty for all.
        policy: Measure this policy alone; None measures the shipped one, and of a model that was
            trained on 30 s the baseline.
        limit: At most this many clips of each set.
        peers: Other recognisers to compare with, of `PEERS`.
        model: Bundle name or folder.
        backend: Runtime of the bundle's graphs.
        beam: Hypotheses, the same for all; None: as published with the model.
        threads: Threads, the same for all.
        language: Language of folders that do not name one.
        layout: Of the folder; found by itself when `AUTO`.
        weights: Folder with the peer's weights; None fetches them once.
        json_path: Where to write all figures and texts.

    Raises:
        CorpusError, PeerUnavailable, EngineError, AudioError, OSError: Nothing can be measured.
    """
    _check_peers(peers)
    clips = accuracy_bench.usable(
        load_corpus(folder, sets=sets, limit=limit, language=language, layout=layout)
    )
    machine = describe()
    config = engine_config(model, backend, threads=threads, beam=beam)
    segmentation = Segmentation(store.silero_path())
    normaliser = best_normaliser()
    is_padded = family_of(config.bundle_dir) == "whisper"
    policies = (Policy.SHIPPED, Policy.PAD30) if is_padded else (Policy.SHIPPED,)
    ours = [
        _load(each.value, policy_config(config, each), segmentation)
        for each in ((policy,) if policy else policies)
    ]
    systems: list[System] = [*ours]
    if FASTER_WHISPER in peers:
        folder_of_peer = ct2_folder(_say, source=weights)
        systems.append(FasterWhisper(folder_of_peer, threads=threads, beam=beam or PUBLISHED_BEAM))
    try:
        speech = [clip for clip in clips if clip.is_speech]
        with progress(len(speech), "speech") as advance:
            outcomes = accuracy_bench.measure_speech(speech, systems, normaliser, advance)
        silent = [clip for clip in clips if not clip.is_speech]
        with progress(len(silent), "noise and music") as advance:
            sounds = accuracy_bench.measure_sounds(silent, ours[0], advance)
    finally:
        for each in ours:
            each.close()

    names = [system.name for system in systems]
    tables: list[Table] = []
    if outcomes:
        tables.extend(accuracy_bench.system_table(name, outcomes) for name in names)
        results = {name: accuracy_bench.summarise(outcomes, name) for name in names}
        if (published := published_table(results)) is not None:
            tables.append(published)
    if outcomes and len(names) > 1:
        tables.append(accuracy_bench.difference_table(outcomes, names[0], names[1:]))
    if sounds:
        tables.append(accuracy_bench.sound_table(sounds))
    settings = {
        "bundle": ours[0].bundle,
        "beam": beam or "as published",
        "threads": threads,
        "language": "pinned per clip",
        "normaliser": normaliser.name,
        **({FASTER_WHISPER: FASTER_WHISPER_OPTIONS} if FASTER_WHISPER in names else {}),
    }
    result = accuracy_bench.to_result(outcomes, sounds, names)
    publish(Report("accuracy", settings, tables, result, machine), json_path=json_path)
    return 0


def peers(
    clips: Path | None = None,
    *,
    per_length: int = 12,
    repeats: int = 3,
    threads: int = 1,
    beam: int = 5,
    sets: Sequence[str] = (),
    model: str | None = None,
    backend: str | None = None,
    language: str | None = None,
    weights: Path | None = None,
    json_path: Path | None = None,
) -> int:
    """Time the recogniser against faster-whisper, clip by clip, in one process; return 0.

    Args:
        clips: Folder of recordings, in a layout of `voiced.bench.corpus`; None: the demo's.
        per_length: Clips of each length class.
        repeats: Runs of each system on each clip; their median counts.
        threads: Threads, the same for both.
        beam: Hypotheses, the same for both.
        sets: Only these sets; empty for all.
        model: Bundle name or folder.
        backend: Runtime of the bundle's graphs.
        language: Language of folders that do not name one.
        weights: Folder with the peer's weights; None fetches them once.
        json_path: Where to write all figures and texts.

    Raises:
        CorpusError, PeerUnavailable, EngineError, AudioError, OSError: Nothing can be measured.
    """
    folder = _folder(clips)
    corpus = load_corpus(folder, sets=sets, language=language)
    chosen = [
        (length, clip)
        for length in peers_bench.LENGTHS
        for clip in peers_bench.pick(corpus, length, per_length)
    ]
    if not chosen:
        wanted = ", ".join(f"{each.least_s:g}-{each.most_s:g} s" for each in peers_bench.LENGTHS)
        raise CorpusError(f"{folder}: no speech clip of {wanted}")
    machine = describe()
    config = engine_config(model, backend, threads=threads, beam=beam)
    peer = FasterWhisper(ct2_folder(_say, source=weights), threads=threads, beam=beam)
    ours = _load("voiced", config, Segmentation(store.silero_path()))
    normaliser = best_normaliser()
    try:
        with progress(len(chosen), "clips") as advance:
            pairs = peers_bench.measure(chosen, ours, peer, repeats=repeats, advance=advance)
    finally:
        ours.close()

    tables = (
        peers_bench.pair_table(pairs, peer.name),
        peers_bench.ratio_table(pairs, peer.name),
        peers_bench.text_table(pairs, normaliser, peer.name),
    )
    settings = {
        "bundle": ours.bundle,
        "beam": beam,
        "threads": threads,
        "repeats": repeats,
        "language": "pinned per clip",
        "normaliser": normaliser.name,
        peer.name: {"compute_type": "int8", **FASTER_WHISPER_OPTIONS},
    }
    result = peers_bench.to_result(pairs, normaliser)
    publish(Report("peers", settings, tables, result, machine), json_path=json_path)
    return 0


def frontend(
    *,
    clips: Path | None = None,
    sets: Sequence[str] = (),
    seconds: float = 60.0,
    streams: int = 16,
    play_s: float = 15.0,
    json_path: Path | None = None,
) -> int:
    """Print what a stream costs besides the recogniser; return 0.

    Args:
        clips: Folder of recordings to play; None: the demo's.
        sets: Only these sets; empty for all.
        seconds: Speech to take, from the first clips of each set in turn.
        streams: Streams played to a daemon at once; 0 measures no daemon.
        play_s: How long they are played, for each message length and kind of sound.
        json_path: Where to write all figures.

    Raises:
        CorpusError, FetchError, AudioError, ChildFailed, OSError: Nothing can be measured.
    """
    machine = describe()
    folder = _folder(clips)
    speech = bench_systems.read_speech(load_corpus(folder, sets=sets), seconds)
    source = f"clips of {folder.name}"
    _say("measuring the audio chain")
    chain = frontend_bench.run(store.silero_path(), speech=speech, source=source)
    tables = [chain.table()]
    daemon: daemon_cost.DaemonFigures | None = None
    if streams:
        with progress(3 * len(daemon_cost.MESSAGE_MS), "daemon") as advance:
            daemon = daemon_cost.run(
                speech=speech, source=source, seconds=play_s, streams=streams, advance=advance
            )
        tables.append(daemon.table())
    settings = {"speech": source, "streams": streams, "play_s": play_s}
    result = {"chain": chain, "daemon": daemon}
    publish(Report("frontend", settings, tables, result, machine), json_path=json_path)
    return 0


def backend(
    folder: Path,
    *,
    sets: Sequence[str] = (),
    limit: int = 6,
    utterances: int = 0,
    model: str = "whisper-base-fp32",
    runtime: str = "mindspore_lite",
    threads: int = 1,
    beam: int = 5,
    json_path: Path | None = None,
) -> int:
    """Compare a backend with ONNX Runtime on one converted bundle; return 0.

    Args:
        folder: Recordings, in a layout of `voiced.bench.corpus`.
        sets: Only these sets; empty for all.
        limit: Most clips of each set; those that no gear holds are left out.
        utterances: Also recognise so many, the shortest clips again and again, and watch the
            memory; 0 leaves it out.
        model: A bundle that `voiced model convert` converted.
        runtime: The backend that runs its artifacts.
        threads: Threads, the same for both.
        beam: Hypotheses, the same for both.
        json_path: Where to write all figures and texts.

    Raises:
        CorpusError, EngineError, AudioError, OSError: Nothing can be measured.
    """
    from voiced.bench import backend as backend_bench
    from voiced.engine.backends.mindspore_lite.backend import MsliteBackend, open_backend
    from voiced.engine.bundle import Bundle

    machine = describe()
    config = engine_config(model, runtime, threads=threads, beam=beam)

    def make() -> MsliteBackend:
        opened = open_backend(config)
        if not isinstance(opened, MsliteBackend):
            raise BackendUnavailable("voiced bench backend measures a CPU; a card has selftest")
        return opened

    corpus = load_corpus(folder, sets=sets, language=None)
    memory = backend_bench.gear_memory(
        Bundle.open(Path(config.bundle_dir), verify="size"), make, threads=threads
    )
    ours = make()
    with closing(ours), closing(backend_bench.Contest(config, ours)) as contest:
        fitting = [c for c in corpus if c.is_speech and c.seconds <= contest.longest_s]
        names = sorted({clip.set for clip in fitting})
        chosen = [clip for name in names for clip in _first(fitting, name, limit)]
        with progress(len(chosen), "clips") as advance:
            pairs = contest.run(chosen, advance)
        flatness = None
        if utterances:
            short = sorted(fitting, key=lambda clip: clip.seconds)[:50]
            with progress(utterances, "utterances") as advance:
                flatness = contest.endure(short, utterances, ours, advance)
        tables = backend_bench.tables(
            pairs, contest.ours.timed, contest.theirs.timed, memory, flatness
        )
        settings = {
            "bundle": contest.bundle,
            "library": contest.target.library,
            "beam": beam,
            "threads": threads,
            "language": "pinned per clip",
        }
    result = {"pairs": pairs, "memory": memory, "flatness": flatness}
    publish(Report("backend", settings, tables, result, machine), json_path=json_path)
    return 0


def _first(clips: Sequence[Clip], name: str, limit: int) -> list[Clip]:
    return [clip for clip in clips if clip.set == name][:limit]


def _folder(clips: Path | None) -> Path:
    """Return the folder asked for; without one that of the demo, fetched once."""
    if clips is not None:
        return clips
    from voiced.daemon.commands.demo import fetch_clips

    return fetch_clips(_say)


def _check_peers(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise PeerUnavailable(f"no peer {', '.join(unknown)}; expected one of {', '.join(PEERS)}")


def _load(name: str, config: EngineConfig, segmentation: Segmentation) -> Voiced:
    _say(f"loading {name}")
    return Voiced(name, config, segmentation)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
