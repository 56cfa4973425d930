"""Makes the audio chain of one stream: the daemon's settings, changed by the stream's `start`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from voiced.audio.frames import Encoding, StreamFormat
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.intake import Intake
from voiced.audio.vad import VadFactory, VadKind
from voiced.daemon.endpoint import EndpointPolicy
from voiced.daemon.wire import AudioParams, Start, VadParams


def stream_format(audio: AudioParams) -> StreamFormat:
    """Convert `start.audio`."""
    return StreamFormat(Encoding(audio.encoding), audio.rate_hz, audio.channels)


def front_settings(defaults: FrontSettings, vad: VadParams, *, longest_s: float) -> FrontSettings:
    """Apply what a stream asks for; no segment is longer than the engine's `longest_s`."""
    asked = {
        name: value
        for name in ("end_ms", "pad_ms", "max_segment_s")
        if (value := getattr(vad, name)) is not None
    }
    settings = replace(defaults, **asked)
    return replace(settings, max_segment_s=min(settings.max_segment_s, longest_s))


def endpoint_policy(defaults: EndpointPolicy, vad: VadParams) -> EndpointPolicy:
    """Apply what a stream asks for; bounds that it does not name keep their distance."""
    end_ms = defaults.end_ms if vad.end_ms is None else vad.end_ms
    moved_ms = end_ms - defaults.end_ms
    return EndpointPolicy(
        end_ms=end_ms,
        min_ms=defaults.min_ms + moved_ms if vad.end_min_ms is None else vad.end_min_ms,
        sentence_ms=(
            defaults.sentence_ms + moved_ms if vad.end_sentence_ms is None else vad.end_sentence_ms
        ),
        max_ms=defaults.max_ms + moved_ms if vad.end_max_ms is None else vad.end_max_ms,
    )


class AudioChains:
    """Opens audio chains; is the `OpenChain` of `Streams`."""

    def __init__(
        self,
        *,
        defaults: FrontSettings,
        vads: VadFactory,
        vad_kind: VadKind,
        next_id: Callable[[], int],
        longest_s: Callable[[], float],
    ) -> None:
        """Nothing is loaded before the first stream.

        Args:
            defaults: Endpointing of streams that ask for none.
            vads: Makes detectors.
            vad_kind: Detector of streams that ask for none.
            next_id: Gives segment ids, unique in the daemon run.
            longest_s: Longest segment that the engine takes, asked when a stream is opened.
        """
        self._defaults, self._vads, self._vad_kind = defaults, vads, vad_kind
        self._next_id, self._longest_s = next_id, longest_s

    def __call__(self, name: str, start: Start) -> tuple[Intake, StreamFront]:
        """Make the chain of the stream `name`.

        Raises:
            VadUnavailable: The detector's library or model is missing.
        """
        kind = self._vad_kind if start.vad.kind is None else VadKind(start.vad.kind)
        front = StreamFront(
            name,
            settings=front_settings(self._defaults, start.vad, longest_s=self._longest_s()),
            vad=self._vads.make(kind),
            next_id=self._next_id,
            language=start.language,
        )
        return Intake(stream_format(start.audio)), front
