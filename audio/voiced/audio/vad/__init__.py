"""Voice activity detectors behind one interface, chosen per stream.

| kind    | decides by            | use                                                           |
|---------|-----------------------|---------------------------------------------------------------|
| cascade | silero, when awake    | default: webrtcvad keeps silero asleep while nothing is heard |
| silero  | silero, always        | very quiet or far speech that webrtcvad may sleep through     |
| webrtc  | webrtcvad alone       | no model file; lets most noises through (0 of 47 clips held)  |

`VadFactory` imports what a kind needs only when that kind is made.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from voiced.audio.errors import VadUnavailable
from voiced.audio.pcm import Float32

if TYPE_CHECKING:
    from voiced.audio.vad.silero import SileroNet, SileroVad


class VadModel(Protocol):
    """Speech probability, window by window. One object per stream; it owns all of its state."""

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        ...

    @property
    def batch_windows(self) -> int:
        """Windows in one `feed_many` beyond which nothing is saved."""
        ...

    def feed(self, samples: Float32) -> float:
        """Take the next float32[window_samples]; return its speech probability, 0 to 1."""
        ...

    def feed_many(self, windows: Float32) -> list[float]:
        """Take the next float32[k, window_samples]; return the k probabilities.

        The input may be overwritten by the caller afterwards.
        """
        ...

    def reset(self) -> None:
        """Forget the past: what follows does not continue it."""
        ...


class VadKind(StrEnum):
    """Which detector a stream uses; the values go on the wire."""

    CASCADE = "cascade"
    SILERO = "silero"
    WEBRTC = "webrtc"


class VadFactory:
    """Makes detectors; all streams share one loaded silero network."""

    def __init__(self, silero_path: Path | None) -> None:
        self._silero_path = silero_path
        self._net: SileroNet | None = None

    def make(self, kind: VadKind) -> VadModel:
        """Make the detector of a new stream.

        Raises:
            VadUnavailable: The library or the model file that `kind` needs is missing or damaged.
        """
        if kind is VadKind.SILERO:
            return self._silero()
        from voiced.audio.vad.webrtc import VoiceGate, WebrtcVad

        if kind is VadKind.WEBRTC:
            return WebrtcVad()
        from voiced.audio.vad.cascade import CASCADE_GATE_MODE, CascadeVad

        return CascadeVad(VoiceGate(mode=CASCADE_GATE_MODE), self._silero())

    def _silero(self) -> SileroVad:
        if self._silero_path is None or not self._silero_path.is_file():
            where = self._silero_path or "no path is set"
            raise VadUnavailable(
                f"silero vad model not found: {where}; run `voiced model pull silero-vad` "
                f"or choose vad kind `{VadKind.WEBRTC}`"
            )
        from voiced.audio.vad.silero import SileroNet, SileroVad

        if self._net is None:
            self._net = SileroNet(self._silero_path)
        return SileroVad(self._net)
