"""webrtcvad keeps silero asleep while nothing is heard; awake, silero decides alone."""

from __future__ import annotations

from collections import deque

import numpy as np

from voiced.audio.pcm import Float32
from voiced.audio.vad import VadModel
from voiced.audio.vad.webrtc import VoiceGate

CASCADE_GATE_MODE = 1
"""Mode of the `VoiceGate`. Mode 2 sleeps through half of the speech at -60 dBFS that silero still
finds; noise without tones (-40 dBFS and less) wakes neither."""
LOOK_BACK_WINDOWS = 8
"""Windows (256 ms) that silero hears again when it wakes. It wakes with a fresh state, as at the
beginning of a stream: what it remembers from before the pause is older than the room's noise now.
The look-back settles the state on that noise before the first word is judged; the word itself is
kept by the segment's padding."""
QUIET_WINDOWS = 16
"""Windows (0.5 s) in a row without voice for either detector before silero sleeps again."""
_QUIET_PROBABILITY = 0.2


class CascadeVad:
    """Two detectors as one `VadModel`; while silero sleeps the probability is 0."""

    def __init__(self, gate: VoiceGate, silero: VadModel) -> None:
        self._gate = gate
        self._silero = silero
        self.window_samples = silero.window_samples
        self.batch_windows = silero.batch_windows
        self._past: deque[Float32] = deque()
        """The last windows, a block for each call."""
        self._past_windows = 0
        self.reset()

    @property
    def is_awake(self) -> bool:
        """Does silero judge the next window?"""
        return self._awake

    def reset(self) -> None:
        """Forget the past and fall asleep."""
        self._gate.reset()
        self._silero.reset()
        self._awake = False
        self._quiet_run = 0
        self._past.clear()
        self._past_windows = 0

    def feed(self, samples: Float32) -> float:
        """Take the next window; return its speech probability."""
        return self.feed_many(samples[np.newaxis])[0]

    def feed_many(self, windows: Float32) -> list[float]:
        """Take the next float32[k, window_samples]; return the k speech probabilities.

        Silero falls asleep only between calls.
        """
        heard = self._gate.heard(windows)
        asleep = 0
        if not self._awake:
            asleep = heard.index(True) if True in heard else len(heard)
            self._remember(windows[:asleep])
            if asleep == len(heard):
                return [0.0] * asleep
            self._wake()
        probabilities = self._silero.feed_many(windows[asleep:])
        self._remember(windows[asleep:])
        for voice, probability in zip(heard[asleep:], probabilities, strict=True):
            is_quiet = not voice and probability < _QUIET_PROBABILITY
            self._quiet_run = self._quiet_run + 1 if is_quiet else 0
        self._awake = self._quiet_run < QUIET_WINDOWS
        return [0.0] * asleep + probabilities

    def _wake(self) -> None:
        self._awake, self._quiet_run = True, 0
        self._silero.reset()
        if self._past:
            self._silero.feed_many(np.concatenate(tuple(self._past))[-LOOK_BACK_WINDOWS:])

    def _remember(self, windows: Float32) -> None:
        if not len(windows):
            return
        recent = windows[-LOOK_BACK_WINDOWS:].copy()
        self._past.append(recent)
        self._past_windows += len(recent)
        while self._past_windows - len(self._past[0]) >= LOOK_BACK_WINDOWS:
            self._past_windows -= len(self._past.popleft())
