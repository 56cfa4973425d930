"""Errors of the audio stage.

AudioError              base; `code` is stable and goes on the wire
├── AudioFormatError    bad_audio: bytes or a format that cannot be PCM
├── MediaError          bad_media: a file that cannot be decoded
├── VadUnavailable      vad_unavailable: a detector's library or model is missing
└── MicrophoneError     microphone: base of what a sound device can do wrong
    ├── PortAudioMissing    portaudio_missing
    ├── DeviceNotFound      device_not_found
    └── DeviceBusy          device_busy
"""

from __future__ import annotations


class AudioError(Exception):
    """Base class of the audio stage's errors."""

    code = "audio"


class AudioFormatError(AudioError):
    """The peer's audio does not fit the format it announced."""

    code = "bad_audio"


class MediaError(AudioError):
    """A media file cannot be decoded."""

    code = "bad_media"


class VadUnavailable(AudioError):
    """A voice activity detector cannot be loaded; the text names the next step."""

    code = "vad_unavailable"


class MicrophoneError(AudioError):
    """The sound device failed."""

    code = "microphone"


class PortAudioMissing(MicrophoneError):
    """The system's PortAudio library is not installed."""

    code = "portaudio_missing"


class DeviceNotFound(MicrophoneError):
    """No input device matches."""

    code = "device_not_found"


class DeviceBusy(MicrophoneError):
    """The device exists and cannot be opened now."""

    code = "device_busy"
