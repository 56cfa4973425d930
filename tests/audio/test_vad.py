from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.errors import VadUnavailable
from voiced.audio.pcm import Float32
from voiced.audio.sources import synthetic
from voiced.audio.vad import VadFactory, VadKind, VadModel
from voiced.audio.vad.cascade import LOOK_BACK_WINDOWS, QUIET_WINDOWS, CascadeVad
from voiced.audio.vad.webrtc import VoiceGate, WebrtcVad


def windows(samples: Float32, size: int) -> Float32:
    return samples[: len(samples) // size * size].reshape(-1, size)


def mean_probability(vad: VadModel, samples: Float32) -> float:
    return float(np.mean(vad.feed_many(windows(samples, vad.window_samples))))


class RecordingVad:
    """Stands in for silero: remembers the windows that it judged since its reset."""

    window_samples = 512
    batch_windows = 4

    def __init__(self, probability: float) -> None:
        self._probability = probability
        self.judged: list[float] = []
        self.resets = 0

    def feed(self, samples: Float32) -> float:
        return self.feed_many(samples[np.newaxis])[0]

    def feed_many(self, windows: Float32) -> list[float]:
        self.judged += windows[:, 0].tolist()
        return [self._probability] * len(windows)

    def reset(self) -> None:
        self.judged = []
        self.resets += 1


class ScriptedGate(VoiceGate):
    """Hears voice where it is told to."""

    def __init__(self, heard: Iterable[bool]) -> None:
        super().__init__(mode=1)
        self._script = iter(heard)

    def heard(self, windows: Float32) -> list[bool]:
        return [next(self._script) for _ in windows]


def numbered(count: int) -> Float32:
    """Windows whose samples are their own index."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, np.newaxis], 512, axis=1)


@pytest.mark.parametrize("offset", [0.0, 0.05, 0.4])
def test_webrtc_tells_a_voice_from_silence_whatever_the_offset(offset: float) -> None:
    quiet = synthetic.noise(10, seed=3, level_dbfs=-60) + np.float32(offset)
    assert mean_probability(WebrtcVad(), quiet) < 0.05
    voice = synthetic.buzz(3, seed=3) + np.float32(offset)
    assert mean_probability(WebrtcVad(), voice) > 0.9


def test_webrtc_takes_clipped_sound() -> None:
    clipped = np.clip(synthetic.buzz(2, seed=1) * 50, -1, 1)
    assert mean_probability(WebrtcVad(), clipped) > 0.9


def test_the_gate_does_not_depend_on_how_windows_are_grouped() -> None:
    sound = windows(
        np.concatenate([synthetic.silence(1), synthetic.buzz(1, seed=2), synthetic.silence(1)]), 512
    )
    together, alone = VoiceGate(mode=2), VoiceGate(mode=2)
    heard = [flag for window in sound for flag in alone.heard(window[np.newaxis])]
    assert together.heard(sound) == heard
    assert True in heard
    assert False in heard


def test_a_reset_webrtc_answers_as_a_new_one() -> None:
    sound = np.concatenate([synthetic.buzz(1, seed=5), synthetic.noise(1, seed=6)])
    used = WebrtcVad()
    first = used.feed_many(windows(sound, 480))
    used.reset()
    assert used.feed_many(windows(sound, 480)) == first


def test_silero_sleeps_until_something_is_heard_and_then_looks_back() -> None:
    silero = RecordingVad(0.9)
    vad = CascadeVad(ScriptedGate([False] * 20 + [True] + [False] * 9), silero)
    assert vad.feed_many(numbered(30)) == [0.0] * 20 + [0.9] * 10
    assert silero.judged == list(range(20 - LOOK_BACK_WINDOWS, 30))


def test_silero_looks_back_over_no_more_than_there_is() -> None:
    silero = RecordingVad(0.9)
    vad = CascadeVad(ScriptedGate([False, False, True]), silero)
    assert [vad.feed(window) for window in numbered(3)] == [0, 0, 0.9]
    assert silero.judged == [0, 1, 2]


def test_silero_stays_awake_while_it_finds_speech() -> None:
    vad = CascadeVad(ScriptedGate([True] + [False] * 99), RecordingVad(0.5))
    assert [vad.feed(window) for window in numbered(100)] == [0.5] * 100


def test_silero_stays_awake_while_anything_is_heard() -> None:
    vad = CascadeVad(ScriptedGate([True] * 100), RecordingVad(0.0))
    for window in numbered(100):
        vad.feed(window)
    assert vad.is_awake


def test_silero_falls_asleep_after_quiet_and_wakes_with_a_fresh_state() -> None:
    silero = RecordingVad(0.1)
    script = [True] + [False] * (QUIET_WINDOWS + 3) + [True]
    vad = CascadeVad(ScriptedGate(script), silero)
    sound = numbered(len(script))
    for window in sound[:-1]:
        vad.feed(window)
    assert not vad.is_awake
    resets = silero.resets
    assert vad.feed(sound[-1]) == 0.1
    assert silero.resets == resets + 1
    last = len(script) - 1
    assert silero.judged == list(range(last - LOOK_BACK_WINDOWS, last + 1))


def test_a_missing_silero_model_names_the_next_step(tmp_path: Path) -> None:
    for path in (None, tmp_path / "absent.onnx"):
        with pytest.raises(VadUnavailable, match="voiced model pull silero-vad"):
            VadFactory(path).make(VadKind.CASCADE)
    assert isinstance(VadFactory(None).make(VadKind.WEBRTC), WebrtcVad)


def test_a_damaged_silero_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "silero.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(VadUnavailable, match=r"silero\.onnx.*voiced model pull"):
        VadFactory(path).make(VadKind.SILERO)


def test_webrtc_needs_no_onnxruntime() -> None:
    code = (
        "import sys\n"
        "from voiced.audio.vad import VadFactory, VadKind\n"
        "VadFactory(None).make(VadKind.WEBRTC)\n"
        "sys.exit('onnxruntime' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.model
def test_silero_does_not_depend_on_how_windows_are_grouped(silero_path: Path) -> None:
    factory = VadFactory(silero_path)
    sound = windows(synthetic.buzz(2, seed=3), 512)
    one, many = factory.make(VadKind.SILERO), factory.make(VadKind.SILERO)
    singly = [one.feed(window) for window in sound]
    np.testing.assert_allclose(many.feed_many(sound), singly, atol=1e-5)
    assert max(singly) > 0.8


@pytest.mark.model
def test_streams_share_the_network_and_not_the_state(silero_path: Path) -> None:
    factory = VadFactory(silero_path)
    voice = windows(synthetic.buzz(1, seed=3), 512)
    alone = factory.make(VadKind.SILERO).feed_many(voice)
    one, other = factory.make(VadKind.SILERO), factory.make(VadKind.SILERO)
    mixed = []
    for window in voice:
        mixed.append(one.feed(window))
        other.feed(-window)
    np.testing.assert_allclose(mixed, alone, atol=1e-5)
    one.reset()
    np.testing.assert_allclose(one.feed_many(voice), alone, atol=1e-5)


@pytest.mark.model
def test_cascade_sleeps_in_quiet_noise_and_agrees_with_silero_on_a_voice(silero_path: Path) -> None:
    factory = VadFactory(silero_path)
    cascade, silero = factory.make(VadKind.CASCADE), factory.make(VadKind.SILERO)
    assert isinstance(cascade, CascadeVad)
    quiet = windows(synthetic.noise(3, seed=1, level_dbfs=-60), 512)
    cascade.feed_many(quiet)
    silero.feed_many(quiet)
    assert not cascade.is_awake
    voice = windows(synthetic.buzz(3, seed=3), 512)
    assert np.mean(cascade.feed_many(voice)) == pytest.approx(
        np.mean(silero.feed_many(voice)), abs=0.1
    )
