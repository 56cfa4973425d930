"""FireRedASR through the daemon on MindSpore Lite, with a small generated model."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.tiny_fireredasr import Tiny
from tests.system.running_daemon import finals, launch, noise, say, silence, subscribed

from voiced.engine.backends.mindspore_lite.backend import MsliteBackend
from voiced.engine.build.fireredasr_bundle import Form
from voiced.engine.build.mindspore.convert import choose_gears, convert_bundle
from voiced.engine.build.mindspore.tools import find_converter
from voiced.engine.bundle import Bundle

SOUND = silence(0.5) + noise(1.0) + silence(1.2) + noise(0.7) + silence(1.2)


def test_the_daemon_says_the_same_on_mindspore_lite_as_on_onnx_runtime(
    mslite_python: Path, tmp_path: Path
) -> None:
    folder = build_bundle(
        tmp_path / "tiny", Tiny(2, 2, end_bias=5.0), Form(resident=True), gears_s=(3,)
    )
    bundle = Bundle.open(folder)
    with closing(MsliteBackend(python=mslite_python, deadline_s=60.0)) as backend:
        tool = find_converter(mslite_python)
        convert_bundle(bundle, choose_gears(bundle, (3,)), tool, backend, lambda _: None)
    said = {}
    for name in ("onnxruntime", "mindspore_lite"):
        daemon = launch(
            tmp_path,
            *("--model", str(folder), "--set", "vad.kind=webrtc", "--set", "vad.max_segment_s=3"),
            *("--set", f"engine.backend={name}"),
            *("--set", f"engine.mindspore_lite.python={mslite_python}"),
            name=name,
        )
        try:
            daemon.wait_ready()
            with subscribed(daemon) as bus:
                said[name] = finals(asyncio.run(say(daemon, SOUND, stream="desk")))
                bus.until_ended("desk")
                published = bus.of("desk", "final")
            assert [each["text"] for each in published] == [each["text"] for each in said[name]]
            daemon.process.terminate()
            assert daemon.wait_exit() == 0
        finally:
            daemon.kill()
    ours, theirs = said["mindspore_lite"], said["onnxruntime"]
    assert len(ours) == 2
    assert [each["text"] for each in ours] == [each["text"] for each in theirs] != ["", ""]
    for mine, other in zip(ours, theirs, strict=True):
        assert [w["start_ms"] for w in mine["words"]] == [w["start_ms"] for w in other["words"]]
        assert abs(mine["confidence"] - other["confidence"]) < 1e-4
