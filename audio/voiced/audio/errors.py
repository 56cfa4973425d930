"""Errors of the audio stage.

AudioError              base; `code` is stable and goes on the wire
├── AudioFormatError    bad_audio: bytes or a format that cannot be PCM
├── MediaError          bad_media: a file that cannot be decoded
├── VadUnavailable      vad_unavailable: a detector's library or model is missing
└── MicrophoneError     microphone: base of what a sound device can do wrong
    ├── PortAudioMissing    portaudio_missing
    ├── DeviceNotFound      device_not_found
    ├── DeviceBusy          device_busy
    └── DeviceLost          device_lost
"""

from __future__ import annotations

from difflib import get_close_matches
from os import PathLike, fspath


class AudioError(Exception):
    """Base class of the audio stage's errors."""

    code = "audio"


class AudioFormatError(AudioError):
    """The peer's audio does not fit the format it announced."""

    code = "bad_audio"


class MediaError(AudioError):
    """A media file cannot be decoded."""

    code = "bad_media"

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{fspath(self.path)}: {self.reason}"


class VadUnavailable(AudioError):
    """A voice activity detector cannot be loaded; the text names the next step."""

    code = "vad_unavailable"


class MicrophoneError(AudioError):
    """The sound device failed."""

    code = "microphone"


class PortAudioMissing(MicrophoneError):
    """The system's PortAudio library is not installed."""

    code = "portaudio_missing"

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return (
            f"the microphone needs the PortAudio library: {self.found}; "
            "install it, on Debian and Ubuntu: apt install libportaudio2"
        )


class DeviceNotFound(MicrophoneError):
    """No input device matches."""

    code = "device_not_found"

    def __init__(
        self, wanted: str | int | None, have: tuple[str, ...], *, matches: tuple[str, ...] = ()
    ) -> None:
        super().__init__(wanted, have, matches)
        self.wanted, self.have, self.matches = wanted, have, matches
        """The setting that was looked up, the names there are, those that match too loosely."""

    @property
    def nearest(self) -> str | None:
        """The name that was probably meant."""
        if not isinstance(self.wanted, str):
            return None
        folded = {name.casefold(): name for name in reversed(self.have)}
        close = get_close_matches(self.wanted.casefold(), folded, n=1, cutoff=0.5)
        return folded[close[0]] if close else None

    def __str__(self) -> str:
        if not self.have:
            return (
                "no input device: the sound system offers none; connect a microphone, check that "
                "the sound server runs and that this user may reach it"
            )
        have = ", ".join(map(repr, self.have))
        if self.matches:
            matches = ", ".join(map(repr, self.matches))
            return f"{self.wanted!r} names several input devices: {matches}; use a full name"
        if self.wanted is None:
            return f"no default input device; name one of {have}"
        hint = f"; did you mean {self.nearest!r}" if self.nearest else ""
        return f"no input device {self.wanted!r}{hint}; there are {have}"


class DeviceBusy(MicrophoneError):
    """The device exists and cannot be opened now."""

    code = "device_busy"

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device, self.reason = device, reason

    def __str__(self) -> str:
        return (
            f"input device {self.device!r} is busy ({self.reason}); close the program that "
            "records from it, or choose a device of the sound server, such as 'pulse'"
        )


class DeviceLost(MicrophoneError):
    """The device was recording and does so no more."""

    code = "device_lost"

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device, self.reason = device, reason

    def __str__(self) -> str:
        return f"input device {self.device!r} is lost: {self.reason}"
