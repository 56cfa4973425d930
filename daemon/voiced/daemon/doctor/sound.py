"""The sound device: library, server, devices, and the one that is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voiced.audio.errors import AudioError, DeviceNotFound, PortAudioMissing
from voiced.audio.sources.portaudio import InputDevice, find_device, list_devices, load
from voiced.daemon.doctor.finding import Finding, fail, ok, warn
from voiced.daemon.settings import MicrophoneSettings

_ANSWER_S = 5.0


def check_sound(
    settings: MicrophoneSettings,
    *,
    library: Callable[[], Any] = load,
    devices: Callable[[], Sequence[InputDevice]] = lambda: list_devices(timeout_s=_ANSWER_S),
    environment: Mapping[str, str] = os.environ,
    dev: Path = Path("/dev"),
) -> Iterator[Finding]:
    """Look for what a microphone needs; what is missing is a failure only where one is enabled."""
    is_needed = settings.enabled
    worse = fail if is_needed else warn
    aside = "" if is_needed else "; not needed while `microphone.enabled` is false"
    try:
        sd = library()
    except PortAudioMissing as error:
        if not is_needed:
            yield ok("audio", f"no PortAudio library{aside}")
        else:
            yield fail("audio", str(error), "apt install libportaudio2")
        return
    yield ok("audio", str(sd.get_portaudio_version()[1]).partition(",")[0])
    yield from _check_server(environment, dev)
    try:
        found = devices()
    except AudioError as error:
        yield worse("audio", str(error) + aside, "restart the sound server; see its log")
        return
    if not found and not is_needed:
        yield ok("audio", f"no input device{aside}")
        return
    if found:
        names = ", ".join(device.name + " *" * device.is_default for device in found)
        yield ok("audio", f"{len(found)} input devices (* default): {names}")
    wanted = settings.device
    try:
        chosen = find_device(
            int(wanted) if wanted is not None and wanted.isdecimal() else wanted, found
        )
    except DeviceNotFound as error:
        yield worse(
            "audio", str(error) + aside, "plug it in, or set `microphone.device`: `voiced devices`"
        )
        return
    yield ok("audio", f"the device that is used: {chosen.name}, {chosen.rate_hz} Hz")


def _check_server(environment: Mapping[str, str], dev: Path) -> Iterator[Finding]:
    server = environment.get("PULSE_SERVER", "")
    path = Path(server.removeprefix("unix:")) if server.startswith("unix:") else None
    if path is None and (runtime := environment.get("XDG_RUNTIME_DIR")):
        path = Path(runtime) / "pulse" / "native"
    if path is not None and path.exists():
        if os.access(path, os.W_OK):
            yield ok("audio", f"sound server at {path}")
        else:
            yield warn(
                "audio",
                f"sound server at {path} does not let this user in",
                "give the service a socket of it (systemd/README.md: PULSE_SERVER)",
            )
    elif server:
        yield warn("audio", f"no sound server at {server}", "start it, or unset PULSE_SERVER")
    cards = sorted(path.name for path in (dev / "snd").glob("pcmC*c"))
    closed = [name for name in cards if not os.access(dev / "snd" / name, os.R_OK | os.W_OK)]
    if closed:
        yield warn(
            "permissions",
            f"{len(closed)} of {len(cards)} recording devices in {dev}/snd are closed to this user",
            "join the group `audio` (the service is in it)",
        )
