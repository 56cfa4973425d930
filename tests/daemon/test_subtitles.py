from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.commands.subtitles import Cue, to_srt, to_vtt

TIMING = re.compile(r"\d\d+:[0-5]\d:[0-5]\d[,.]\d{3} --> \d\d+:[0-5]\d:[0-5]\d[,.]\d{3}")

cues = st.lists(
    st.builds(
        Cue,
        start_s=st.floats(0, 400_000),
        end_s=st.floats(0, 400_000),
        text=st.text(max_size=40),
    ),
    max_size=5,
)


def test_subrip_is_written_as_players_read_it() -> None:
    assert to_srt([Cue(0.5, 1.9996, "Hello."), Cue(3599.9999, 3661.25, "你好")]) == (
        "1\n00:00:00,500 --> 00:00:02,000\nHello.\n\n2\n01:00:00,000 --> 01:01:01,250\n你好\n"
    )


def test_webvtt_is_written_as_browsers_read_it() -> None:
    assert to_vtt([Cue(0.5, 2.0, "a < b & c --> d")]) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.000\na &lt; b &amp; c --&gt; d\n"
    )


def test_without_texts_the_files_are_valid_and_empty() -> None:
    assert to_srt([Cue(0, 1, "  ")]) == ""
    assert to_vtt([Cue(0, 1, "\n")]) == "WEBVTT\n"


def test_a_cue_of_no_length_is_still_shown() -> None:
    assert "00:00:01,000 --> 00:00:01,001" in to_srt([Cue(1, 1, "a")])


def test_an_arrow_of_any_length_is_no_timing() -> None:
    assert to_srt([Cue(0, 1, "a -----> b")]).count("-->") == 1


@given(cues)
def test_no_text_can_end_its_cue_or_look_like_a_timing(given_cues: list[Cue]) -> None:
    spoken = [cue for cue in given_cues if cue.text.strip()]
    for text, head in ((to_srt(given_cues), 0), (to_vtt(given_cues), 1)):
        blocks = [block for block in text.split("\n\n") if block.strip()]
        assert len(blocks) == len(spoken) + head
        arrows = [line for line in text.split("\n") if "-->" in line]
        assert len(arrows) == len(spoken)
        assert all(TIMING.fullmatch(line) for line in arrows)
