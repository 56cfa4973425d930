"""The model and what it runs on: files, runtime, NPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from voiced.daemon.doctor.finding import Finding, fail, ok, warn
from voiced.daemon.settings import Settings
from voiced.engine import store
from voiced.engine.bundle import Bundle
from voiced.engine.errors import EngineError
from voiced.engine.types import FAKE_MODEL


def check_model(settings: Settings) -> Iterator[Finding]:
    """Find the model, read every byte of it, and look for its runtime and the detector's model."""
    name = settings.engine.model
    if name == FAKE_MODEL:
        yield warn("model", "the fake one of the tests", "set `engine.model`")
    else:
        try:
            bundle = Bundle.open(store.resolve(name))
        except EngineError as error:
            yield fail("model", str(error), f"voiced model pull {name}")
        else:
            size = sum(entry.bytes for entry in bundle.manifest.files.values())
            yield ok("model", f"{bundle.id}, {size / 1e6:.0f} MB, every byte as built")
    if settings.vad.kind != "webrtc":
        if store.silero_path() is None:
            yield fail(
                "model",
                f"the speech detector's model is missing (vad.kind is {settings.vad.kind})",
                "voiced model pull silero-vad",
            )
        else:
            yield ok("model", f"speech detector {settings.vad.kind}")


def check_runtime(settings: Settings) -> Iterator[Finding]:
    """Look for the library that runs the graphs."""
    if settings.engine.backend == "onnxruntime":
        if importlib.util.find_spec("onnxruntime") is None:
            yield fail("runtime", "onnxruntime is not installed", "install voiced again")
        else:
            from importlib.metadata import version

            yield ok("runtime", f"onnxruntime {version('onnxruntime')}")
        return
    lite = settings.engine.mindspore_lite
    if lite.python is not None and not os.access(lite.python, os.X_OK):
        yield fail(
            "runtime",
            f"engine.mindspore_lite.python: {lite.python} cannot be run",
            "set it to the interpreter that has mindspore_lite (docs/mindspore-lite.md)",
        )
    elif lite.python is None and importlib.util.find_spec("mindspore_lite") is None:
        yield warn(
            "runtime",
            "mindspore_lite is not installed in this Python",
            "what `make mindspore` made is used, or set `engine.mindspore_lite.python`",
        )
    else:
        yield ok("runtime", f"mindspore_lite of {lite.python or 'this Python'}")


def check_npu(
    settings: Settings,
    *,
    dev: Path = Path("/dev"),
    driver: Path = Path("/usr/local/Ascend/driver/version.info"),
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Finding]:
    """Look for Ascend cards, their driver and CANN; they matter where the settings name a card."""
    device = settings.engine.mindspore_lite.device
    is_needed = settings.engine.backend == "mindspore_lite" and device.startswith("ascend")
    cards = sorted(path.name for path in dev.glob("davinci[0-9]*"))
    if not is_needed:
        have = f"{len(cards)} cards ({', '.join(cards)})" if cards else "no card"
        yield ok("npu", f"{have}; not used by the settings")
        return
    wanted = f"davinci{device.partition(':')[2] or 0}"
    if wanted not in cards:
        have = ", ".join(cards) or "no card at all"
        yield fail(
            "npu",
            f"{dev}/{wanted} does not exist, there is {have}",
            "install the driver (`npu-smi info` must list the card), or set "
            "`engine.mindspore_lite.device`",
        )
    for name in (wanted, "davinci_manager", "devmm_svm", "hisi_hdc"):
        path = dev / name
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            yield fail(
                "npu",
                f"{path} is closed to this user",
                "join the group HwHiAiUser; the service: systemd/ascend.conf",
            )
    if driver.is_file():
        text = driver.read_text(encoding="utf-8", errors="replace")
        facts = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        yield ok("npu", f"driver {facts.get('Version', 'of unknown version')}, {', '.join(cards)}")
    else:
        yield warn("npu", f"no driver version in {driver}", "install the Ascend driver")
    if not environment.get("ASCEND_OPP_PATH") or not environment.get("LD_LIBRARY_PATH"):
        yield warn(
            "npu",
            "CANN's environment is not set (ASCEND_OPP_PATH, LD_LIBRARY_PATH)",
            "source its set_env.sh; for the service, docs/ascend.md, step 7",
        )
    else:
        yield ok("npu", f"CANN at {environment['ASCEND_OPP_PATH']}")
