"""Files of every common kind, made here with PyAV, and damaged ones."""

from __future__ import annotations

import logging
import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from voiced.audio.errors import MediaError
from voiced.audio.sources.media import decode_file, probe, read_all

TONE_HZ = 440.0


def tone(rate_hz: int, duration_s: float, *, level: float = 0.5) -> npt.NDArray[np.float32]:
    """float32[n]: a sine."""
    t = np.arange(round(rate_hz * duration_s)) / rate_hz
    return (level * np.sin(2 * np.pi * TONE_HZ * t)).astype(np.float32)


def encode(
    path: Path,
    codec: str,
    rate_hz: int,
    channels: Sequence[npt.NDArray[np.float32]],
    *,
    layout: str | None = None,
    picture_s: float = 0.0,
    delay_s: float = 0.0,
    hole: tuple[float, float] | None = None,
) -> Path:
    """Write float32[n] channels with one of FFmpeg's encoders.

    `picture_s` adds a video of that length, `delay_s` starts the sound late, packets that begin
    within `hole` (seconds) are left out.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz)
        stream.layout = layout or ("mono" if len(channels) == 1 else "stereo")
        if picture_s:
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for index in range(round(picture_s * 10)):
                picture = av.VideoFrame(32, 32, "yuv420p")
                for plane in picture.planes:
                    plane.update(bytes(plane.buffer_size))
                picture.pts, picture.time_base = index, Fraction(1, 10)
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        planar = av.AudioFrame.from_ndarray(
            np.stack(channels), format="fltp", layout=stream.layout.name
        )
        planar.sample_rate = rate_hz
        fifo = av.AudioFifo()
        to_codec = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate_hz)
        for frame in to_codec.resample(planar):
            frame.pts = None
            fifo.write(frame)
        position = round(delay_s * rate_hz)
        packets = []
        while (
            part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)
        ) is not None:
            part.pts, part.time_base = position, Fraction(1, rate_hz)
            position += part.samples
            packets += stream.encode(part)
        packets += stream.encode(None)
        for packet in packets:
            start_s = float(packet.pts * packet.time_base)
            if hole is None or not hole[0] <= start_s < hole[1]:
                container.mux(packet)
    return path


def dominant_hz(samples: npt.NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * 16_000 / len(samples))


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "channels"),
    [
        ("a.wav", "pcm_s16le", 8_000, 1),
        ("b.wav", "pcm_f32le", 44_100, 2),
        ("c.wav", "pcm_s24le", 96_000, 2),
        ("d.wav", "pcm_mulaw", 8_000, 1),
        ("e.wav", "pcm_u8", 11_025, 1),
        ("a.flac", "flac", 48_000, 2),
        ("a.mp3", "libmp3lame", 44_100, 2),
        ("b.mp3", "libmp3lame", 16_000, 1),
        ("a.opus", "libopus", 48_000, 2),
        ("a.ogg", "flac", 22_050, 1),
        ("a.m4a", "aac", 44_100, 2),
        ("a.webm", "libopus", 48_000, 1),
        ("a.mkv", "pcm_s32le", 32_000, 1),
    ],
)
def test_a_file_of_any_kind_becomes_the_same_sound_at_16_khz(
    tmp_path: Path, name: str, codec: str, rate_hz: int, channels: int
) -> None:
    path = encode(tmp_path / name, codec, rate_hz, [tone(rate_hz, 2.0)] * channels)
    samples = read_all(path)
    assert samples.dtype == np.float32
    assert len(samples) / 16_000 == pytest.approx(2.0, abs=0.06)  # lossy codecs pad
    middle = samples[8_000:24_000]
    assert dominant_hz(middle) == pytest.approx(TONE_HZ, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    info = probe(path)
    assert (info.rate_hz, info.channels) == (rate_hz, channels)
    assert info.duration_s == pytest.approx(2.0, abs=0.06)


def test_16_khz_mono_passes_bit_exact(tmp_path: Path) -> None:
    pcm = np.random.default_rng(1).integers(-32768, 32768, 50_000).astype(np.int16)
    sound = (pcm / 32768).astype(np.float32)
    path = encode(tmp_path / "noise.wav", "pcm_s16le", 16_000, [sound])
    assert np.array_equal(read_all(path), sound)


def test_resampling_neither_shifts_nor_shortens(tmp_path: Path) -> None:
    path = encode(tmp_path / "tone.wav", "pcm_f32le", 48_000, [tone(48_000, 1.5)])
    samples = read_all(path)
    assert len(samples) == 24_000
    assert np.abs(samples - tone(16_000, 1.5))[200:-200].max() < 1e-3


def test_channels_are_mixed_by_their_mean(tmp_path: Path) -> None:
    left = tone(16_000, 0.5)
    quiet = np.zeros_like(left)
    stereo = encode(tmp_path / "stereo.wav", "pcm_f32le", 16_000, [left, quiet])
    assert np.allclose(read_all(stereo), left / 2)
    surround = encode(
        tmp_path / "surround.wav", "pcm_f32le", 16_000, [left, *[quiet] * 5], layout="5.1"
    )
    assert np.allclose(read_all(surround), left / 6)


@pytest.mark.parametrize("channels", [7, 8, 9, 32, 64])
def test_any_number_of_channels_is_mixed(tmp_path: Path, channels: int) -> None:
    """From 8 on the planes of a frame are more than FFmpeg's frame has room for by itself."""
    path = tmp_path / "many.wav"
    chance = np.random.default_rng(channels)
    for frames in range(1, 400, 7):
        pcm = chance.integers(-9_000, 9_000, (frames, channels)).astype("<i2")
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(pcm.tobytes())
        assert np.allclose(read_all(path), pcm.mean(axis=1) / 32_768, atol=1e-6)


def test_more_channels_than_can_be_mixed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(65)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(65 * 2 * 100))
    with pytest.raises(MediaError, match="65 channels cannot be mixed"):
        read_all(path)


def test_samples_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    path = encode(tmp_path / "hot.wav", "pcm_f32le", 16_000, [tone(16_000, 0.5, level=1.8)])
    samples = read_all(path)
    assert samples.max() == 1.0
    assert samples.min() == -1.0


def test_blocks_come_one_by_one_and_are_never_empty(tmp_path: Path) -> None:
    path = encode(tmp_path / "long.flac", "flac", 44_100, [tone(44_100, 20.0)])
    lengths = [len(block) for block in decode_file(path)]
    assert sum(lengths) == 320_000
    assert min(lengths) > 0
    assert max(lengths) < 16_000


def test_a_video_gives_its_sound_at_the_place_where_it_is_heard(tmp_path: Path) -> None:
    sound = tone(48_000, 1.0)
    path = encode(tmp_path / "film.mkv", "flac", 48_000, [sound], picture_s=3.0, delay_s=1.0)
    samples = read_all(path)
    assert len(samples) == pytest.approx(32_000, abs=160)
    assert np.abs(samples[:15_800]).max() == 0
    assert dominant_hz(samples[16_000:]) == pytest.approx(TONE_HZ, abs=2)


def test_a_pause_in_the_timestamps_becomes_silence(tmp_path: Path) -> None:
    path = encode(tmp_path / "pause.webm", "libopus", 48_000, [tone(48_000, 4.0)], hole=(1.0, 3.0))
    blocks = list(decode_file(path))
    assert max(len(block) for block in blocks) <= 16_000
    samples = np.concatenate(blocks)
    assert len(samples) == pytest.approx(64_000, abs=960)
    assert np.abs(samples[18_000:46_000]).max() < 1e-3
    assert np.abs(samples[50_000:60_000]).max() > 0.4


@pytest.mark.parametrize(
    ("name", "codec", "reason"),
    [
        ("a.wav", "pcm_s16le", "bytes are missing"),
        ("a.flac", "flac", "packets cannot be decoded"),
        ("a.mp3", "libmp3lame", "header announces 4.0 s"),
    ],
)
def test_a_file_cut_in_half_gives_its_first_half_and_says_so(
    tmp_path: Path, name: str, codec: str, reason: str
) -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, 64_000).astype(np.float32)
    whole = encode(tmp_path / name, codec, 16_000, [noise])
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(whole.read_bytes()[: round(whole.stat().st_size * 0.5)])
    said: list[str] = []
    samples = read_all(cut, on_damage=said.append)
    assert 1.0 < len(samples) / 16_000 < 2.5
    assert np.array_equal(samples[:8_000], read_all(whole)[:8_000])
    (text,) = said
    assert str(cut) in text
    assert reason in text


def test_a_whole_file_is_not_called_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, codec in [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac")]:
        read_all(encode(tmp_path / name, codec, 16_000, [tone(16_000, 3.0)]))
    assert not caplog.records


def test_damage_is_logged_when_nobody_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = encode(tmp_path / "a.wav", "pcm_s16le", 16_000, [tone(16_000, 1.0)])
    path.write_bytes(path.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        read_all(path)
    assert "the last 1000 bytes are missing" in caplog.text


def test_a_wav_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", "pcm_s16le", 16_000, [tone(16_000, 1.0)])
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    said: list[str] = []
    assert len(read_all(path, on_damage=said.append)) == 16_000
    assert said == []


def test_a_title_in_an_old_code_page_is_none_of_our_business(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", "pcm_s16le", 16_000, [tone(16_000, 1.0)])
    title = b"INFOINAM" + (6).to_bytes(4, "little") + b"caf\xe9\xff\0"
    chunk = b"LIST" + len(title).to_bytes(4, "little") + title
    data = path.read_bytes()
    place = data.index(b"data")
    data = data[:place] + chunk + data[place:]
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    assert len(read_all(path)) == 16_000


def _silent_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(video.encode(None))


def test_what_cannot_be_decoded_is_named_with_its_reason(tmp_path: Path) -> None:
    _silent_video(tmp_path / "silent.mp4")
    (tmp_path / "empty.wav").touch()
    for name in ("notes", "notes.txt"):
        (tmp_path / name).write_text("not a sound\n" * 100)
    (tmp_path / "folder").mkdir()
    header = encode(tmp_path / "a.wav", "pcm_s16le", 16_000, [tone(16_000, 1.0)]).read_bytes()
    (tmp_path / "header.wav").write_bytes(header[: header.index(b"data") + 8])
    reasons = {
        "absent.wav": "no such file",
        "silent.mp4": "no audio stream, only video",
        "empty.wav": "is empty",
        "notes": "not a media file",
        "notes.txt": "no audio stream",
        "folder": "directory",
        "header.wav": "bytes are missing",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError) as caught:
            read_all(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert reason in str(caught.value)
        assert caught.value.code == "bad_media"


def test_an_m4a_without_its_index_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", "aac", 44_100, [tone(44_100, 2.0)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match="head is lost"):
        probe(path)


def test_a_name_that_looks_like_an_address_is_a_file_name(tmp_path: Path) -> None:
    path = encode(tmp_path / "concat:a|b.wav", "pcm_s16le", 16_000, [tone(16_000, 0.5)])
    assert len(read_all(path)) == 8_000
    with pytest.raises(MediaError, match="no such file"):
        read_all("http://127.0.0.1:9/a.wav")


def test_infinite_and_missing_numbers_in_a_file_are_silence(tmp_path: Path) -> None:
    path = tmp_path / "odd.wav"
    samples = np.zeros(16_000, "<f4")
    samples[::7] = np.inf
    samples[3::7] = -np.inf
    samples[5::7] = np.nan
    samples[6::7] = 3e38
    body = samples.tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(body), b"WAVE", b"fmt ", 16, 3, 2, 16_000, 128_000, 8, 32),
        *(b"data", len(body)),
    )
    path.write_bytes(header + body)
    found = read_all(path)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.0
