"""The server side of one connection, without a connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.stream_protocol import MAX_TEXT_BYTES, Audio, StreamProtocol, Violation
from voiced.daemon.wire import Cancel, Flush, Start, Stop

START = '{"type":"start","v":1,"audio":{}}'


def started() -> StreamProtocol:
    protocol = StreamProtocol()
    assert isinstance(protocol.receive(START), Start)
    return protocol


def code(action: object) -> str:
    assert isinstance(action, Violation)
    assert action.message
    return action.code


def test_a_stream_starts_takes_audio_and_stops() -> None:
    protocol = started()
    assert protocol.receive(b"\x00\x01\x02") == Audio(b"\x00\x01\x02")
    assert protocol.receive('{"type":"flush"}') == Flush()
    assert protocol.receive('{"type":"stop"}') == Stop()
    assert protocol.is_over


def test_an_empty_block_of_audio_means_nothing() -> None:
    assert started().receive(b"") is None


@pytest.mark.parametrize(
    "first", [b"\x00\x00", '{"type":"flush"}', '{"type":"stop"}', '{"type":"cancel"}']
)
def test_anything_before_start_is_refused(first: bytes | str) -> None:
    assert code(StreamProtocol().receive(first)) == "not_started"


def test_a_second_start_is_refused() -> None:
    assert code(started().receive(START)) == "already_started"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        '{"v":1}',
        '{"type":"begin","v":1}',
        '{"type":"start","v":1}',
        '{"type":"start","v":1,"audio":{},"colour":"red"}',
        '{"type":"start","v":1,"audio":{"bits":16}}',
        '{"type":"start","v":1,"audio":{"encoding":"mp3"}}',
        '{"type":"start","v":1,"audio":{"rate_hz":100}}',
        '{"type":"start","v":1,"audio":{"channels":0}}',
        '{"type":"start","v":1,"audio":{},"stream":"a b"}',
        '{"type":"start","v":1,"audio":{},"stream":""}',
        '{"type":"start","v":1,"audio":{},"vad":{"kind":"ear"}}',
        '{"type":"start","v":1,"audio":{},"vad":{"end_ms":-1}}',
        '{"type":"start","v":1,"audio":{},"language":"English"}',
        '{"type":"start","v":1,"audio":{},"stream":"\\ud800"}',
        "[" * 10_000,
        '{"type":"ready","v":1,"stream":"s","bundle":"b","rate_hz":1}',
    ],
)
def test_text_that_is_no_message_is_refused(text: str) -> None:
    assert code(StreamProtocol().receive(text)) == "bad_message"


@pytest.mark.parametrize("version", ["2", "0", '"1"', "1.5"])
def test_another_version_is_refused_by_its_own_code(version: str) -> None:
    violation = StreamProtocol().receive(f'{{"type":"start","v":{version},"audio":{{}}}}')
    assert code(violation) == "unsupported_version"


def test_a_long_text_is_refused_unread() -> None:
    assert code(started().receive(" " * (MAX_TEXT_BYTES + 1))) == "too_large"


def test_what_was_on_its_way_when_the_stream_ended_is_ignored() -> None:
    protocol = started()
    assert protocol.receive('{"type":"cancel"}') == Cancel()
    for late in (b"\x00\x00", START, "rubbish", '{"type":"stop"}'):
        assert protocol.receive(late) is None


def test_nothing_has_an_effect_after_a_violation() -> None:
    protocol = StreamProtocol()
    assert code(protocol.receive("rubbish")) == "bad_message"
    assert protocol.is_over
    assert protocol.receive(START) is None


messages = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=64),
    st.sampled_from(
        [START, '{"type":"flush","v":1}', '{"type":"stop"}', '{"type":"cancel"}', '{"type":"x"}']
    ),
)


@given(st.lists(messages, max_size=30))
def test_no_sequence_of_messages_breaks_the_order(sequence: list[bytes | str]) -> None:
    protocol = StreamProtocol()
    actions = []
    for message in sequence:
        was_over = protocol.is_over
        action = protocol.receive(message)
        assert not (was_over and action is not None)
        if action is not None:
            actions.append(action)
    starts = [index for index, action in enumerate(actions) if isinstance(action, Start)]
    ends = [
        index
        for index, action in enumerate(actions)
        if isinstance(action, Stop | Cancel | Violation)
    ]
    assert starts in ([], [0])
    assert ends in ([], [len(actions) - 1])
    if not starts:
        assert all(isinstance(action, Violation) for action in actions)
