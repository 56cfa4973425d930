"""Folders laid out like the public test sets, with a little sound in them."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from voiced.bench import public_sets
from voiced.bench.corpus import Clip, load_corpus
from voiced.bench.errors import CorpusError
from voiced.bench.public_sets import Layout
from voiced.bench.systems import read_clip


def write_wav(path: Path, seconds: float = 0.25) -> Path:
    """Write a ramp: sample i is i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(np.arange(round(16_000 * seconds), dtype="<i2").tobytes())
    return path


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def shown(clips: list[Clip]) -> list[tuple[str, str, str | None]]:
    return [(clip.set, clip.id, clip.text) for clip in clips]


def test_librispeech_has_a_set_for_each_of_its_parts(tmp_path: Path) -> None:
    for part, speaker in (("test-clean", "1089"), ("test-other", "367"), ("train-clean-100", "19")):
        chapter = tmp_path / "LibriSpeech" / part / speaker / "1"
        write_wav(chapter / f"{speaker}-1-0000.wav")
        write_lines(chapter / f"{speaker}-1.trans.txt", [f"{speaker}-1-0000 {part.upper()}"])
    found = load_corpus(tmp_path)
    assert [(c.set, c.text, c.language) for c in found] == [
        ("librispeech-test-clean", "TEST-CLEAN", "en"),
        ("librispeech-test-other", "TEST-OTHER", "en"),
    ]
    (train,) = load_corpus(tmp_path, sets=["librispeech-train-clean-100"])
    assert train.text == "TRAIN-CLEAN-100"
    # one part alone, as people give it
    assert len(load_corpus(tmp_path / "LibriSpeech" / "test-other")) == 1


def test_aishell1_reads_the_test_part_unless_another_is_named(tmp_path: Path) -> None:
    names = {"train": "BAC009S0002W0122", "dev": "BAC009S0724W0121", "test": "BAC009S0764W0121"}
    for split, name in names.items():
        write_wav(tmp_path / "data_aishell" / "wav" / split / name[6:11] / f"{name}.wav")
    write_lines(
        tmp_path / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt",
        [f"{name} 甚至 出现 {split}" for split, name in names.items()],
    )
    (clip,) = load_corpus(tmp_path)
    assert (clip.set, clip.text, clip.language) == ("aishell1-test", "甚至 出现 test", "zh")
    assert load_corpus(tmp_path, sets=["aishell1-dev"])[0].text == "甚至 出现 dev"
    with pytest.raises(CorpusError, match="no set test; it has aishell1-dev, aishell1-test, a"):
        load_corpus(tmp_path, sets=["test"])


def test_aishell2_has_a_set_for_each_channel(tmp_path: Path) -> None:
    for channel, split, name in (
        ("iOS", "test", "IT0011W0001"),
        ("Android", "test", "AT0011W0001"),
        ("iOS", "dev", "ID0012W0030"),
    ):
        folder = tmp_path / "AISHELL-DEV-TEST-SET" / channel / split
        write_wav(folder / "wav" / name[1:6] / f"{name}.wav")
        write_lines(folder / "wav.scp", [f"{name}\twav/{name[1:6]}/{name}.wav"])
        write_lines(folder / "trans.txt", [f"{name}\t换一首歌", "MISSING\t没有"])
    assert shown(load_corpus(tmp_path)) == [
        ("aishell2-test-android", "AT0011W0001", "换一首歌"),
        ("aishell2-test-ios", "IT0011W0001", "换一首歌"),
    ]


def wenetspeech(folder: Path) -> None:
    write_wav(folder / "audio" / "test_net" / "Y1.wav", 1.0)

    def segment(sid: str, begin: float, end: float, text: str, subset: str) -> dict[str, object]:
        return {
            "sid": sid,
            "begin_time": begin,
            "end_time": end,
            "text": text,
            "confidence": 1.0,
            "subsets": [subset],
        }

    audios = [
        {
            "aid": "Y1",
            "path": "audio/test_net/Y1.wav",
            "duration": 1.0,
            "segments": [
                segment("Y1_S0", 0.25, 0.5, "怎么样", "TEST_NET"),
                segment("Y1_S1", 0.5, 1.0, "训练", "L"),
                segment("Y1_S2", 0.75, 1.0, "[好]了", "TEST_NET"),
            ],
        },
        {"aid": "Y2", "path": "audio/gone.opus", "duration": 9, "segments": []},
    ]
    text = json.dumps({"version": "v1.0.0", "audios": audios}, ensure_ascii=False, indent=1)
    (folder / "WenetSpeech.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("read_chars", [7, 100, 1 << 20])
def test_wenetspeech_is_cut_out_of_its_recordings(
    tmp_path: Path, read_chars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_sets, "_READ_CHARS", read_chars)
    wenetspeech(tmp_path)
    first, second = load_corpus(tmp_path)
    assert (first.set, first.id, first.text) == ("wenetspeech-test-net", "Y1_S0", "怎么样")
    assert (first.seconds, second.seconds) == (0.25, 0.25)
    np.testing.assert_array_equal(read_clip(first), np.arange(4000, 8000))
    np.testing.assert_array_equal(read_clip(second), np.arange(12_000, 16_000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"audio": []}', 'no array "audios"'),
        ('{"audios": [{"path": "a"', "damaged end"),
        ('{"audios": [{"path": "a"}]}', "recording without 'segments'"),
    ],
)
def test_a_damaged_list_of_wenetspeech_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "WenetSpeech.json").write_text(text)
    with pytest.raises(CorpusError, match=words):
        load_corpus(tmp_path)


def test_kespeech_names_its_recordings_from_the_top(tmp_path: Path) -> None:
    write_wav(tmp_path / "Audio" / "1000001" / "phase1" / "1000001_1.wav")
    for split in ("test", "dev_phase1"):
        folder = tmp_path / "Tasks" / "ASR" / split
        write_lines(folder / "wav.scp", ["1000001_1 Audio/1000001/phase1/1000001_1.wav"])
        write_lines(folder / "text", ["1000001_1 <SPOKEN_NOISE>你好<SPOKEN_NOISE>"])
    assert shown(load_corpus(tmp_path)) == [("kespeech-test", "1000001_1", "你好")]


def test_kaldi_folders_are_read_with_their_segments(tmp_path: Path) -> None:
    write_wav(tmp_path / "wav" / "long.wav", 1.0)
    folder = tmp_path / "data" / "test_net"
    write_lines(folder / "wav.scp", ["long wav/long.wav"])
    write_lines(folder / "segments", ["u1 long 0.0 0.25", "u2 long 0.5 1.0"])
    write_lines(folder / "text", ["u1 你 好", "u2 hello there"])
    one, two = load_corpus(tmp_path, layout=Layout.KALDI)
    assert (one.set, one.text, one.language) == ("wenetspeech-test-net", "你 好", "zh")
    assert (two.language, two.seconds) == ("en", 0.5)
    np.testing.assert_array_equal(read_clip(two), np.arange(8000, 16_000))


def test_kaldi_commands_and_damaged_segments_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "text", ["u1 你好"])
    write_lines(tmp_path / "wav.scp", ["u1 sox in.wav -t wav - |"])
    with pytest.raises(CorpusError, match="a command for u1, expected a file"):
        load_corpus(tmp_path)
    write_lines(tmp_path / "wav.scp", ["u1 in.wav"])
    write_lines(tmp_path / "segments", ["u1 in.wav 0.0"])
    with pytest.raises(CorpusError, match=r"found 'in.wav 0.0' for u1"):
        load_corpus(tmp_path)


def test_a_layout_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CorpusError, match="as layout kespeech; expected"):
        load_corpus(tmp_path, layout=Layout.KESPEECH)
    assert load_corpus(tmp_path)[0].text == "hello"
