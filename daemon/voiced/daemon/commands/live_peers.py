"""`voiced bench peers --live`: this daemon and other servers, in turn, under the same dialogue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from voiced.bench import live_peers as bench
from voiced.bench.errors import PeerUnavailable
from voiced.bench.live_peers import LivePeer, PeerRun
from voiced.bench.live_servers import Moonshine, WyomingFasterWhisper, require
from voiced.bench.load import LoadPlan
from voiced.bench.load_report import LoadResult
from voiced.bench.machine import describe
from voiced.bench.report import Report, progress, publish
from voiced.bench.systems import ct2_folder
from voiced.daemon.commands.bench import _say
from voiced.daemon.commands.child import ChildDaemon
from voiced.daemon.commands.live import Served, run_once, run_settings, speech

WYOMING, MOONSHINE = "wyoming", "moonshine"
PEERS = (WYOMING, MOONSHINE)


def live_peers(
    *,
    clips: Path | None = None,
    sets: Sequence[str] = (),
    streams: Sequence[int] = (1, 2, 4, 8),
    seconds: float = 60.0,
    peers: Sequence[str] = (),
    threads: int | None = None,
    beam: int = 5,
    partials: bool = True,
    model: str | None = None,
    backend: str | None = None,
    language: str | None = None,
    weights: Path | None = None,
    seed: int = 0,
    json_path: Path | None = None,
) -> int:
    """Play the same dialogues to each system, one server at a time; return 0.

    Args:
        clips: Folder of recordings; None: the demo's.
        sets: Only these sets.
        streams: Numbers of live streams, one run for each and system.
        seconds: Length of a run.
        peers: Of `PEERS`; empty for all.
        threads: Threads of a graph call, the same for all that take it; None: one a core.
        beam: Hypotheses, the same for those with our weights.
        partials: Whether this daemon makes partials.
        model: Bundle of this daemon.
        backend: Its runtime.
        language: Language of folders that name none.
        weights: Folder with the peer's weights; None fetches them once.
        seed: Of the dialogues.
        json_path: Where to write everything.

    Raises:
        PeerUnavailable, BenchError, EngineError, DaemonError, OSError: Nothing can be measured.
    """
    machine = describe()
    cores = threads or len(os.sched_getaffinity(0))
    served = Served(
        model=model,
        backend=backend,
        assignments=(f"engine.threads={cores}", f"engine.beam={beam}"),
    )
    others = [_make(name, cores, beam, served, weights) for name in peers or PEERS]
    said = speech(served, clips, sets=sets, language=language)
    runs: list[tuple[str, LoadResult]] = []
    for count in streams:
        plan = LoadPlan(
            streams=count,
            seconds=seconds,
            partials=partials,
            hang_over_ms=served.hang_over_ms(),
            seed=seed,
        )
        runs.append(("voiced", run_once(served, said, plan, title="voiced")))
        for peer in others:
            with peer.serve() as (pid, port), progress(round(seconds), peer.name) as advance:
                family = ChildDaemon(pid, "", "", 0.0).family
                run = PeerRun(peer, plan, said.spoken, said.judge)
                runs.append((peer.name, asyncio.run(run.run(port, family, advance))))
    waits = {"voiced": f"its detector and {served.hang_over_ms():.0f} ms of silence"}
    waits |= {peer.name: peer.wait for peer in others}
    settings = {
        **run_settings(served, said, seconds=seconds, partials=partials, seed=seed),
        "threads": cores,
        "beam": beam,
        "compute type": "int8",
    }
    ordered = sorted(runs, key=lambda run: run[0] != "voiced")
    result = {"runs": [{"system": name, "run": run} for name, run in ordered]}
    report = Report(
        "peers",
        settings,
        [bench.comparison(ordered, waits)],
        result,
        machine,
        "voiced bench peers --live",
    )
    publish(report, json_path=json_path)
    return 0


def _make(name: str, threads: int, beam: int, served: Served, weights: Path | None) -> LivePeer:
    match name:
        case "wyoming":
            require("wyoming_faster_whisper", "wyoming-faster-whisper")
            folder = ct2_folder(_say, source=weights)
            return WyomingFasterWhisper(folder, threads, beam, served.hang_over_ms())
        case "moonshine":
            require("moonshine_voice", "moonshine-voice")
            return Moonshine()
        case _:
            raise PeerUnavailable(f"no live peer {name}; expected one of {', '.join(PEERS)}")
