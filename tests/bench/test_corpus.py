from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest

from voiced.bench.corpus import load_corpus
from voiced.bench.errors import CorpusError


def write_wav(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(2 * round(16_000 * seconds)))
    return path


def write_manifest(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(name: str, **changes: object) -> dict[str, object]:
    return {
        "id": name,
        "audio": f"{name}.flac",
        "text": "打开车窗",
        "lang": "zh",
        "seconds": 1.5,
        "tags": ["read"],
    } | changes


def test_manifests_give_a_set_each(tmp_path: Path) -> None:
    write_manifest(tmp_path, "zh_cars", [row("a"), row("b")])
    write_manifest(tmp_path, "noise", [row("dog", text=None, lang="none", tags=["non-speech"])])
    noise, first, second = load_corpus(tmp_path)
    assert (first.id, first.set, first.language, first.seconds) == ("a", "zh_cars", "zh", 1.5)
    assert first.path == tmp_path / "a.flac"
    assert first.is_speech
    assert second.id == "b"
    assert (noise.text, noise.language, noise.is_speech) == (None, None, False)


def test_a_line_separator_inside_a_text_does_not_end_its_line(tmp_path: Path) -> None:
    write_manifest(tmp_path, "odd", [row("a", text="one\N{LINE SEPARATOR}two")])
    assert load_corpus(tmp_path)[0].text == "one\N{LINE SEPARATOR}two"


def test_sets_can_be_chosen_and_limited(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_manifest(tmp_path, name, [row(f"{name}-{number}") for number in range(3)])
    clips = load_corpus(tmp_path, sets=["two"], limit=2)
    assert [clip.id for clip in clips] == ["two-0", "two-1"]


def test_an_unknown_set_is_refused_with_the_ones_there_are(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", [row("a")])
    with pytest.raises(CorpusError, match="no set tow; it has one"):
        load_corpus(tmp_path, sets=["tow"])


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "a"}', '{"id": 1, "audio": 2}'])
def test_a_damaged_manifest_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(row("a")) + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"bad\.jsonl:2"):
        load_corpus(tmp_path)


def test_librispeech_folders_are_read(tmp_path: Path) -> None:
    chapter = tmp_path / "1998" / "15444"
    write_wav(chapter / "1998-15444-0000.wav", 0.25)
    (chapter / "1998-15444.trans.txt").write_text(
        "1998-15444-0000 IF CALLED TO A CASE\n1998-15444-0001 NOT DOWNLOADED\n"
    )
    (clip,) = load_corpus(tmp_path)
    assert (clip.id, clip.text) == ("1998/15444/1998-15444-0000", "IF CALLED TO A CASE")
    assert (clip.language, clip.seconds) == ("en", 0.25)


def test_aishell_folders_are_read(tmp_path: Path) -> None:
    write_wav(tmp_path / "wav" / "test" / "S0764" / "BAC009S0764W0121.wav")
    transcripts = tmp_path / "transcript" / "aishell_transcript_v0.8.txt"
    transcripts.parent.mkdir()
    transcripts.write_text("BAC009S0764W0121 甚至 出现 交易\n", encoding="utf-8")
    (clip,) = load_corpus(tmp_path)
    assert (clip.text, clip.language) == ("甚至 出现 交易", "zh")


def test_texts_beside_audio_are_read_and_their_language_is_guessed(tmp_path: Path) -> None:
    for name, text in (("a", "Open the\nwindow."), ("b", "打开车窗"), ("c", None)):
        write_wav(tmp_path / f"{name}.wav")
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    found = {clip.id: (clip.text, clip.language) for clip in load_corpus(tmp_path)}
    assert found == {"a": ("Open the window.", "en"), "b": ("打开车窗", "zh")}


def test_a_recording_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    (tmp_path / "a.txt").write_text("no sound")
    with pytest.raises(CorpusError, match=r"a\.wav"):
        load_corpus(tmp_path)


def test_a_folder_without_recordings_is_refused_with_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"expected <set>\.jsonl"):
        load_corpus(tmp_path)
    with pytest.raises(CorpusError, match="no folder"):
        load_corpus(tmp_path / "missing")
