from __future__ import annotations

import struct
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from voiced.bench import peers, systems
from voiced.bench.corpus import Clip
from voiced.bench.errors import PeerUnavailable, RecogniserFailed
from voiced.bench.normalise import builtin_normaliser
from voiced.bench.peers import LENGTHS, Pair
from voiced.bench.systems import Answer, FasterWhisper, ct2_folder
from voiced.engine.build import sources
from voiced.engine.build.ct2 import content_sha256
from voiced.engine.errors import FetchError


def clip(name: str, seconds: float = 1.5, set_name: str = "en", text: str | None = "hi") -> Clip:
    return Clip(name, Path(f"{name}.wav"), text, "en", frozenset(), seconds, set_name)


class Scripted:
    """A recogniser that takes the time it is told to."""

    def __init__(self, name: str, times_ms: list[float], log: list[str]) -> None:
        self.name, self._times_ms, self._log = name, times_ms, log

    def transcribe(self, pcm: systems.Pcm, language: str | None) -> Answer:
        self._log.append(self.name)
        return Answer(f"{self.name} {language}", self._times_ms.pop(0))


def pair(length_index: int, ours_ms: float, peer_ms: float) -> Pair:
    length = LENGTHS[length_index]
    return Pair(length, clip("a", length.least_s), ours_ms, peer_ms, "hi", "high")


def test_every_length_class_holds_its_own_clips_only() -> None:
    clips = [clip(f"{tenth}", tenth / 10) for tenth in range(0, 200, 5)]
    for length in LENGTHS:
        chosen = peers.pick(clips, length, 100)
        assert chosen
        assert all(length.least_s <= each.seconds <= length.most_s for each in chosen)


def test_the_choice_does_not_depend_on_the_order_of_the_corpus() -> None:
    clips = [clip(f"{set_name}{n}", set_name=set_name) for set_name in "abc" for n in range(9)]
    assert peers.pick(clips, LENGTHS[0], 7) == peers.pick(clips[::-1], LENGTHS[0], 7)


def test_sets_take_turns_so_that_a_large_one_does_not_make_up_a_class() -> None:
    clips = [clip(f"big{n}", set_name="big") for n in range(100)]
    clips += [clip(f"small{n}", set_name="small") for n in range(3)]
    chosen = peers.pick(clips, LENGTHS[0], 8)
    assert sorted(each.set for each in chosen) == ["big"] * 5 + ["small"] * 3


def test_clips_without_a_text_come_last_and_sounds_never() -> None:
    mute = [clip(f"mute{n}", text=None) for n in range(5)]
    noise = replace(clip("dog", text=None), language=None, tags=frozenset({"non-speech"}))
    chosen = peers.pick([noise, *mute, clip("said")], LENGTHS[0], 4)
    assert chosen[0].id == "said"
    assert len(chosen) == 4
    assert noise not in peers.pick([noise, *mute], LENGTHS[0], 99)


def recorded(folder: Path, name: str) -> Clip:
    """A clip with a file: a tenth of a second of silence."""
    path = folder / f"{name}.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(3200))
    return replace(clip(name), path=path)


def test_a_failure_is_no_speed(tmp_path: Path) -> None:
    class Failing(Scripted):
        def transcribe(self, pcm: systems.Pcm, language: str | None) -> Answer:
            return Answer("", 0.1, "backend_failed: no")

    chosen = [(LENGTHS[0], recorded(tmp_path, "a"))]
    peer = Scripted("peer", [100, 100], [])
    with pytest.raises(RecogniserFailed, match="ours failed on clip a: backend_failed: no"):
        peers.measure(chosen, Failing("ours", [], []), peer, repeats=1, advance=lambda _: None)


def test_systems_take_turns_in_alternating_order_after_an_untimed_round(tmp_path: Path) -> None:
    chosen = [(LENGTHS[0], recorded(tmp_path, name)) for name in ("a", "b")]
    log: list[str] = []
    ours = Scripted("ours", [99, 10, 30, 20, 7, 5, 6], log)
    peer = Scripted("peer", [99, 100, 300, 200, 50, 70, 60], log)

    first, second = peers.measure(chosen, ours, peer, repeats=3, advance=lambda _: None)

    assert log[:2] == ["ours", "peer"]
    assert log[2:8] == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert log[8:10] == ["peer", "ours"]
    assert (first.ours_ms, first.peer_ms, first.ratio) == (20, 200, 10)
    assert (second.ours_ms, second.peer_ms, second.ratio) == (6, 60, 10)
    assert first.ours_text == "ours en"


def test_the_ratio_of_a_class_is_the_median_of_its_pairs() -> None:
    pairs = [pair(0, 10, 100), pair(0, 10, 120), pair(0, 100, 400), pair(3, 10, 25)]
    short, long = peers.summarise(pairs)
    assert (short.length, short.clips) == ("1.5 s", 3)
    assert (short.ratio_q1, short.ratio_median, short.ratio_q3) == (7, 10, 11)
    assert (long.ratio_q1, long.ratio_median, long.ratio_q3) == (2.5, 2.5, 2.5)


def test_the_texts_of_both_are_scored_on_the_same_clips() -> None:
    unwritten = replace(pair(0, 1, 2), clip=clip("b", text=None))
    table = peers.text_table([pair(0, 1, 2), unwritten], builtin_normaliser(), "peer")
    assert table.rows == (("en WER", "1", "0.0", "100.0"),)
    result = peers.to_result([pair(0, 1, 2), unwritten], builtin_normaliser())
    assert result["errors"] == {"en": {"voiced": 0.0, "peer": 100.0}}


def test_the_tables_show_every_pair_and_every_class() -> None:
    pairs = [pair(0, 10, 100), pair(1, 10, 80)]
    assert [row[-1] for row in peers.pair_table(pairs, "peer").rows] == ["x10.0", "x8.0"]
    assert [row[5] for row in peers.ratio_table(pairs, "peer").rows] == ["x10.0", "x8.0"]


def test_a_peer_that_is_not_installed_is_reported_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(PeerUnavailable, match="install the dependency group `peers`"):
        FasterWhisper(tmp_path, threads=1, beam=5)


# ---- the peer's weights ------------------------------------------------------------------------


def tiny_model() -> bytes:
    """One fp16 variable in a CTranslate2 file of version 6."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = np.arange(4, dtype="<f2").tobytes()
    variable = string("w") + struct.pack("<BIBI", 1, 4, 4, len(data)) + data
    head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 1)
    return head + variable + struct.pack("<I", 0)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model in two parts; the source expects exactly its content."""
    folder = tmp_path / "parts"
    folder.mkdir()
    content = tiny_model()
    (folder / "model.bin.part1").write_bytes(content[:20])
    (folder / "model.bin.part2").write_bytes(content[20:])
    for name in ("tokenizer.json", "config.json", "vocabulary.txt"):
        (folder / name).write_text(name)
    expected = content_sha256({"w": np.arange(4, dtype=np.float16)})
    known = replace(sources.MODELS["whisper-base"], content_sha256=expected)
    monkeypatch.setitem(sources.MODELS, "whisper-base", known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_the_parts_of_the_peers_weights_are_joined_once(parts: Path) -> None:
    folder = ct2_folder(lambda _: None, source=parts)
    assert (folder / "model.bin").read_bytes() == tiny_model()
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.bin", "tokenizer.json", "config.json", "vocabulary.txt"}
    assert ct2_folder(lambda _: None, source=parts / "gone") == folder


def test_other_weights_are_refused_and_nothing_is_left(parts: Path, tmp_path: Path) -> None:
    with (parts / "model.bin.part2").open("r+b") as file:
        file.seek(-6, 2)
        file.write(b"\x01")
    with pytest.raises(FetchError, match="expected"):
        ct2_folder(lambda _: None, source=parts)
    assert not any((tmp_path / "cache" / "voiced" / "peers").iterdir())
