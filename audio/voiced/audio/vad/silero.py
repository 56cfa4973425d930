"""silero-vad 6 (MIT) on ONNX Runtime, several windows per call.

Two graphs are understood, told apart by their inputs:

- one that takes any number of consecutive windows per call: the wheel's
  `silero_vad_16k_sequence.onnx`, and the bundle's, the same network written out for batches;
- `silero_vad_16k_op15.onnx`, which takes one window, its LSTM state as one tensor.

They hold the same weights. Milliseconds per second of audio, one thread, two shared cores (AMD
EPYC), both busy, onnxruntime 1.32, median of 60 calls. Cold: 16 MB of other memory written before
each call, as in a daemon between whose calls other streams and processes run.

| windows of 32 ms per call | 1    | 2    | 4    | 6    | 8    | 16   |
|---------------------------|------|------|------|------|------|------|
| wheel's graph, hot        | 4.7  | 3.7  | 5.3  | 3.8  | 2.7  | 2.2  |
| bundle's graph, hot       | 3.2  | 2.2  | 2.6  | 1.0  | 1.1  | 0.8  |
| wheel's graph, cold       | 12.4 | 7.7  | 6.4  | 3.9  | 3.5  | 3.0  |
| bundle's graph, cold      | 10.0 | 6.2  | 4.3  | 2.6  | 1.9  | 1.5  |

Hence batches of 8 wherever no event could come earlier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.audio.errors import VadUnavailable
from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import Float32

WINDOW_SAMPLES = 512
_CONTEXT_SAMPLES = 64
"""Samples of the previous window that the network sees in front of each window."""
_UNITS = 128
_MOST_WINDOWS = 8
"""Windows in one call."""

State = npt.NDArray[np.float32]
"""float32[2, 128]: the LSTM's h and c of one stream."""


def initial_state() -> State:
    """The state of a stream that has heard nothing."""
    return np.zeros((2, _UNITS), np.float32)


class SileroNet:
    """The network: loaded once, shared by all streams, holds no stream's state. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Load the graph.

        Raises:
            VadUnavailable: onnxruntime is missing, or `path` is not one of the two graphs.
        """
        try:
            import onnxruntime as ort
            from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
        except ImportError as error:
            raise VadUnavailable(
                "onnxruntime cannot be imported; install the package `onnxruntime`"
            ) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        damaged = (
            ort_errors.Fail,
            ort_errors.InvalidArgument,
            ort_errors.InvalidGraph,
            ort_errors.InvalidProtobuf,
            ort_errors.NoSuchFile,
        )
        try:
            self._session: Any = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except damaged as error:
            raise VadUnavailable(
                f"silero vad model cannot be loaded: {path}: {error}; "
                "run `voiced model pull silero-vad` to replace it"
            ) from error
        names = {graph_input.name for graph_input in self._session.get_inputs()}
        if names == {"input", "h", "c"}:
            self._run = self._run_sequence
        elif names == {"input", "state", "sr"}:
            self._run = self._run_single
        else:
            raise VadUnavailable(
                f"silero vad model refused: {path}: found inputs {', '.join(sorted(names))}, "
                "expected input, h, c or input, state, sr; "
                "run `voiced model pull silero-vad` to replace it"
            )

    def run(self, windows: Float32, state: State) -> tuple[list[float], State]:
        """Run consecutive windows of one stream.

        Args:
            windows: float32[k, 576]: 64 samples of context, then the window's 512.
            state: What the previous call returned, or `initial_state()`.

        Returns:
            The k speech probabilities and the new state.
        """
        probabilities: list[float] = []
        for begin in range(0, len(windows), _MOST_WINDOWS):
            part, state = self._run(windows[begin : begin + _MOST_WINDOWS], state)
            probabilities += part
        return probabilities, state

    def _run_sequence(self, windows: Float32, state: State) -> tuple[list[float], State]:
        feeds = {"input": windows, "h": state[0].reshape(1, 1, -1), "c": state[1].reshape(1, 1, -1)}
        probabilities, h, c = self._session.run(("speech_probs", "hn", "cn"), feeds)
        return probabilities.tolist(), np.stack((h[0, 0], c[0, 0]))

    def _run_single(self, windows: Float32, state: State) -> tuple[list[float], State]:
        probabilities: list[float] = []
        rate_hz = np.array(RATE_HZ, np.int64)
        carried = state[:, np.newaxis]
        for window in windows:
            feeds = {"input": window[np.newaxis], "state": carried, "sr": rate_hz}
            probability, carried = self._session.run(("output", "stateN"), feeds)
            probabilities.append(probability.item())
        return probabilities, carried[:, 0]


class SileroVad:
    """silero as the `VadModel` of one stream."""

    window_samples = WINDOW_SAMPLES
    batch_windows = 8

    def __init__(self, net: SileroNet) -> None:
        self._net = net
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._state = initial_state()
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)

    def feed(self, samples: Float32) -> float:
        """Take the next float32[512]; return its speech probability."""
        return self.feed_many(samples[np.newaxis])[0]

    def feed_many(self, windows: Float32) -> list[float]:
        """Take the next float32[k, 512]; return the k speech probabilities."""
        framed = np.empty((len(windows), _CONTEXT_SAMPLES + WINDOW_SAMPLES), np.float32)
        framed[0, :_CONTEXT_SAMPLES] = self._context
        framed[1:, :_CONTEXT_SAMPLES] = windows[:-1, -_CONTEXT_SAMPLES:]
        framed[:, _CONTEXT_SAMPLES:] = windows
        self._context = windows[-1, -_CONTEXT_SAMPLES:].copy()
        probabilities, self._state = self._net.run(framed, self._state)
        return probabilities
