from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.vad import VadKind
from voiced.daemon.commands.transcribe import (
    HotwordsUnused,
    OutputFormat,
    OutputRefused,
    join_texts,
    transcribe,
)
from voiced.daemon.config import ConfigError
from voiced.daemon.exit_status import EXIT_READER_GONE, exit_status
from voiced.engine.errors import BundleError

RATE_HZ = 16_000
FIELDS = ["path", "text", "language", "audio_s", "compute_s", "segments"]
SEGMENT_FIELDS = ["start_s", "end_s", "text", "confidence", "words"]


def write_tones(path: Path, count: int, *, rate_hz: int = RATE_HZ) -> Path:
    """A file with `count` beeps of 0.3 s, 0.3 s apart: the fake recogniser counts them."""
    time_s = np.arange(round(0.3 * rate_hz)) / rate_hz
    beep = (12_000 * np.sin(2 * np.pi * 440 * time_s)).astype("<i2")
    pause = np.zeros_like(beep)
    samples = np.concatenate([pause, *(part for _ in range(count) for part in (beep, pause))])
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(samples.tobytes())
    return path


def run(*files: Path, **options: object) -> int:
    """Transcribe with the fake recogniser, each file as one segment."""
    return transcribe(files, **{"model": "fake", "vad": None, **options})  # type: ignore[arg-type]


def test_a_file_becomes_a_line_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_tones(tmp_path / "a.wav", 3)) == 0
    assert capsys.readouterr() == ("one two three\n", "")


def test_a_file_too_long_for_one_segment_says_what_to_do_and_the_rest_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = write_tones(tmp_path / "long.wav", 60), write_tones(tmp_path / "short.wav", 1)
    assert run(long, short) == 1
    out, err = capsys.readouterr()
    assert out == f"{short}: one\n"
    assert err == (
        f"voiced: {long}: longer than 28 s, the most that the model takes as one segment; "
        "leave out --no-vad\n"
    )


def test_several_files_are_told_apart_by_their_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_tones(tmp_path / "a.wav", 1), write_tones(tmp_path / "b.wav", 2)
    assert run(first, second, language="zh") == 0
    assert capsys.readouterr().out == f"{first}: 一\n{second}: 一二\n"


def test_json_lines_have_exactly_the_documented_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_tones(tmp_path / "a.wav", 2, rate_hz=48_000)
    assert run(file, output_format=OutputFormat.JSONL, language="en") == 0
    row = json.loads(capsys.readouterr().out)
    assert list(row) == FIELDS
    assert (row["path"], row["text"], row["language"]) == (str(file), "one two", "en")
    assert row["audio_s"] == pytest.approx(1.5, abs=0.01)
    assert row["compute_s"] > 0
    (segment,) = row["segments"]
    assert list(segment) == SEGMENT_FIELDS
    assert (segment["start_s"], segment["text"]) == (0.0, "one two")
    assert segment["end_s"] == row["audio_s"]
    assert 0 < segment["confidence"] <= 1


def test_a_silent_file_has_no_text_no_language_and_no_segments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_tones(tmp_path / "a.wav", 0), output_format=OutputFormat.JSONL) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["text"], row["language"], row["segments"]) == ("", None, [])


def test_a_file_that_fails_is_reported_and_the_rest_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    good = write_tones(tmp_path / "good.wav", 1)
    assert run(tmp_path / "missing.wav", bad, good) == 1
    out, err = capsys.readouterr()
    assert out == f"{good}: one\n"
    first, second = err.splitlines()
    assert first.startswith("voiced: ")
    assert "missing.wav" in first
    assert "bad.wav" in second


def test_a_damaged_file_gives_what_can_be_read_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_tones(tmp_path / "cut.wav", 3)
    file.write_bytes(file.read_bytes()[: 44 + 2 * RATE_HZ])
    assert run(file) == 0
    out, err = capsys.readouterr()
    assert out == "one two\n"
    assert err.startswith("voiced: warning: ")


@pytest.mark.parametrize(
    ("output_format", "start"),
    [(OutputFormat.SRT, "1\n00:00:00,000 --> 00:00:00,900\none\n"), (OutputFormat.VTT, "WEBVTT\n")],
)
def test_subtitles_are_written_to_a_file_named_after_each_recording(
    tmp_path: Path, output_format: OutputFormat, start: str
) -> None:
    files = [write_tones(tmp_path / name, 1) for name in ("a.wav", "b.wav")]
    out = tmp_path / "subtitles"
    assert run(*files, output_format=output_format, out=out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        f"a.{output_format}",
        f"b.{output_format}",
    ]
    assert (out / f"a.{output_format}").read_text().startswith(start)


def test_recordings_of_one_stem_keep_their_endings(tmp_path: Path) -> None:
    files = [write_tones(tmp_path / name, 1) for name in ("talk.wav", "talk.wave")]
    out = tmp_path / "texts"
    out.mkdir()
    assert run(*files, out=out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["talk.wav.txt", "talk.wave.txt"]


def test_one_output_file_takes_every_recording(tmp_path: Path) -> None:
    files = [write_tones(tmp_path / name, count) for name, count in (("a.wav", 1), ("b.wav", 2))]
    out = tmp_path / "all.jsonl"
    assert run(*files, output_format=OutputFormat.JSONL, out=out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["one", "one two"]


def test_two_recordings_in_one_subtitle_file_are_refused(tmp_path: Path) -> None:
    files = [write_tones(tmp_path / name, 1) for name in ("a.wav", "b.wav")]
    with pytest.raises(OutputRefused, match="name a folder with --out"):
        run(*files, output_format=OutputFormat.SRT, out=tmp_path / "all.srt")
    with pytest.raises(OutputRefused, match="srt holds one recording, found 2 files"):
        run(*files, output_format=OutputFormat.SRT)


def test_two_recordings_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [write_tones(tmp_path / folder / "a.wav", 1) for folder in ("x", "y")]
    with pytest.raises(OutputRefused, match="2 inputs would be written to"):
        run(*files, out=tmp_path / "texts")


def test_an_unknown_model_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        run(write_tones(tmp_path / "a.wav", 1), model="no-such-model")


def test_an_output_file_is_not_left_half_written(tmp_path: Path) -> None:
    out = tmp_path / "all.txt"
    out.write_text("the old one\n")
    with pytest.raises(BundleError):
        run(write_tones(tmp_path / "a.wav", 1), model="no-such-model", out=out)
    assert out.read_text() == "the old one\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "all.txt"]


def test_a_reader_that_leaves_ends_the_command_silently(tmp_path: Path) -> None:
    file = write_tones(tmp_path / "a.wav", 1)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "voiced.daemon.cli", "transcribe", "--no-vad"]
    try:
        done = subprocess.run(
            [*command, "--model", "fake", str(file)],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_READER_GONE, b"")


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["Hello.", " How are you? "], "Hello. How are you?"),
        (["打开车窗", "关上车窗"], "打开车窗关上车窗"),
        (["打开车窗。", "Thank you"], "打开车窗。Thank you"),
        (["", "a", "", "b"], "a b"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_they_are_written(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined


def test_a_file_of_hotwords_is_refused_as_the_daemon_does(tmp_path: Path) -> None:
    file, sound = tmp_path / "hotwords.txt", write_tones(tmp_path / "a.wav", 1)
    with pytest.raises(ConfigError) as missing:
        run(sound, hotwords=file)
    assert str(missing.value).endswith(
        f"  --hotwords: cannot be read: {file}: no such file or directory"
    )
    file.write_text(f"# names\nAlexa\n...\n{'x' * 65} :3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as bad:
        run(sound, hotwords=file)
    assert [problem.source for problem in bad.value.problems] == [f"{file}:3", f"{file}:4"]
    file.write_text("\n".join(f"word {i}" for i in range(1_001)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"must be at most 1000 phrases$"):
        run(sound, hotwords=file)


def test_a_model_without_hotwords_is_not_given_any(tmp_path: Path) -> None:
    file, sound = tmp_path / "hotwords.txt", write_tones(tmp_path / "a.wav", 1)
    file.write_text("Alexa\n", encoding="utf-8")
    with pytest.raises(HotwordsUnused, match=r"^fake@00000000 has no hotwords, .* --hotwords$"):
        run(sound, hotwords=file)
    assert exit_status(HotwordsUnused.code) == 2
    file.write_text("# none yet\n", encoding="utf-8")
    assert run(sound, hotwords=file) == 0


@pytest.mark.speech
def test_speech_is_cut_into_segments_where_it_pauses(
    speech_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = speech_dir / "long" / "ls-2609-joined.flac"
    assert run(file, vad=VadKind.WEBRTC, output_format=OutputFormat.JSONL) == 0
    row = json.loads(capsys.readouterr().out)
    segments = row["segments"]
    assert row["audio_s"] == pytest.approx(94.01, abs=0.01)
    assert len(segments) > 5
    assert all(each["end_s"] - each["start_s"] <= 16 for each in segments)
    starts = [each["start_s"] for each in segments]
    assert starts == sorted(starts)
    assert segments[-1]["end_s"] <= row["audio_s"]


@pytest.mark.model
@pytest.mark.speech
def test_the_real_model_writes_what_is_said(
    bundle: Path, speech_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        speech_dir / "en_misc" / "jfk.flac",
        speech_dir / "zh_multispeaker" / "SSB02000375.flac",
    ]
    assert transcribe(files, output_format=OutputFormat.JSONL, model=str(bundle)) == 0
    english, mandarin = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert "ask what you can do for your country" in english["text"].lower()
    assert english["language"] == "en"
    assert "销售过程管理" in mandarin["text"]
    assert mandarin["language"] == "zh"


@pytest.mark.model
@pytest.mark.speech
def test_a_rare_word_is_written_where_it_is_among_the_hotwords(
    bundle: Path, speech_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hotwords = tmp_path / "hotwords.txt"
    hotwords.write_text("# drugs\n\nApomorphine :2.5  # an emetic\nstrychnine\n", encoding="utf-8")
    file = speech_dir / "en_librispeech" / "1998-15444-0009.flac"
    texts = []
    for given in (None, hotwords):
        assert transcribe([file], language="en", model=str(bundle), hotwords=given) == 0
        texts.append(capsys.readouterr().out.lower())
    assert ["apomorphine" in text for text in texts] == [False, True]
