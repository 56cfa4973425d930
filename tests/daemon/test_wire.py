"""The codec of the wire messages."""

from __future__ import annotations

import json
import string
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.wire import (
    Alternative,
    AudioParams,
    Cancel,
    ClientMessage,
    EagerFinal,
    Ended,
    Error,
    Failed,
    Final,
    Flush,
    Heartbeat,
    Intent,
    Partial,
    Ready,
    Resumed,
    ServerMessage,
    SpeechEnded,
    SpeechStarted,
    Start,
    Stop,
    VadParams,
    WireError,
    WordInfo,
    decode_client,
    decode_server,
    encode,
    topic,
)

counts = st.integers(0, 2**53)
scores = st.floats(0, 1)
texts = st.text(max_size=40)
names = st.text(string.ascii_letters + string.digits + "._:-", min_size=1, max_size=64).filter(
    lambda name: name != "-"
)
optional_counts = st.none() | counts
common = {
    "stream": names,
    "epoch": st.none() | names,
    "seq": optional_counts,
    "wall_ms": optional_counts,
}

server_messages: st.SearchStrategy[ServerMessage] = st.one_of(
    st.builds(Ready, **common, bundle=texts, rate_hz=counts),
    st.builds(SpeechStarted, **common, segment=counts, start_ms=counts),
    st.builds(
        Partial,
        **common,
        segment=counts,
        revision=counts,
        text=texts,
        stable_chars=counts,
        start_ms=counts,
        end_ms=counts,
        language=texts,
    ),
    st.builds(
        EagerFinal,
        **common,
        segment=counts,
        revision=counts,
        text=texts,
        language=texts,
        confidence=scores,
        start_ms=counts,
        end_ms=counts,
    ),
    st.builds(Resumed, **common, segment=counts),
    st.builds(SpeechEnded, **common, segment=counts, start_ms=counts, end_ms=counts),
    st.builds(
        Final,
        **common,
        segment=counts,
        revision=counts,
        text=texts,
        language=texts,
        confidence=scores,
        start_ms=counts,
        end_ms=counts,
        latency_ms=counts,
        words=st.lists(st.builds(WordInfo, texts, counts, counts, scores), max_size=3).map(tuple),
        n_best=st.lists(st.builds(Alternative, texts, scores), max_size=3).map(tuple),
    ),
    st.builds(Failed, **common, segment=counts, code=texts, message=texts),
    st.builds(Ended, **common, audio_ms=counts, segments=counts, lost_ms=counts),
    st.builds(Error, **common, code=texts, message=texts, retry_after_ms=optional_counts),
    st.builds(
        Intent,
        **common,
        segment=counts,
        name=texts,
        slots=st.dictionaries(texts, texts | counts, max_size=3),
        text=texts,
        confidence=scores,
        plugin=st.none() | texts,
    ),
    st.builds(Heartbeat, **common),
)

client_messages: st.SearchStrategy[ClientMessage] = st.one_of(
    st.builds(
        Start,
        v=st.just(1),
        audio=st.builds(
            AudioParams,
            encoding=st.sampled_from(["pcm_s16le", "pcm_s32le", "pcm_f32le", "mulaw", "alaw"]),
            rate_hz=st.integers(4_000, 192_000),
            channels=st.integers(1, 32),
        ),
        stream=st.none() | names,
        language=st.none() | st.sampled_from(["en", "zh", "yue"]),
        partials=st.booleans(),
        eager=st.booleans(),
        vad=st.builds(
            VadParams,
            kind=st.none() | st.sampled_from(["cascade", "silero", "webrtc"]),
            end_ms=st.none() | st.integers(100, 5_000),
            end_min_ms=st.none() | st.integers(100, 5_000),
            end_sentence_ms=st.none() | st.integers(100, 5_000),
            end_max_ms=st.none() | st.integers(100, 5_000),
            pad_ms=st.none() | st.integers(0, 2_000),
            max_segment_s=st.none() | st.floats(2, 28),
        ),
    ),
    st.sampled_from([Flush(), Stop(), Cancel()]),
)


@given(server_messages)
def test_what_the_server_sends_reads_back_the_same(message: ServerMessage) -> None:
    assert decode_server(encode(message)) == message
    assert decode_server(encode(message).decode()) == message


@given(client_messages)
def test_what_a_client_sends_reads_back_the_same(message: ClientMessage) -> None:
    assert decode_client(encode(message)) == message


@given(server_messages)
def test_every_message_carries_type_version_and_stream(message: ServerMessage) -> None:
    plain = json.loads(encode(message))
    assert plain["v"] == 1
    assert plain["stream"] == message.stream
    assert topic(message) == f"{plain['type']}/{message.stream}".encode()


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_rubbish_is_an_error_of_the_wire_and_nothing_else(data: bytes | str) -> None:
    for decode in (decode_client, decode_server):
        with pytest.raises(WireError):
            decode(data)


def test_a_client_that_sends_an_unknown_field_is_told_which() -> None:
    with pytest.raises(WireError, match=r"unknown field `colour`"):
        decode_client('{"type":"flush","colour":"red"}')


def test_what_a_peer_sent_makes_no_lines_in_a_log_and_no_long_ones() -> None:
    for decode in (decode_client, decode_server):
        with pytest.raises(WireError) as caught:
            decode(r'{"type":"x\n2026 CRITICAL all is lost' + "x" * 10_000 + '"}')
        assert r"x\n2026 CRITICAL" in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_a_stream_may_not_have_the_name_that_stands_for_none() -> None:
    with pytest.raises(WireError, match="regex"):
        decode_client('{"type":"start","v":1,"audio":{},"stream":"-"}')
    for name in ("-a", "--", "a"):
        message = decode_client(f'{{"type":"start","v":1,"audio":{{}},"stream":"{name}"}}')
        assert isinstance(message, Start)
        assert message.stream == name


@pytest.mark.parametrize("field", [r'"stream":"desk\n"', r'"language":"en\n"'])
def test_a_line_feed_behind_a_name_is_refused(field: str) -> None:
    with pytest.raises(WireError, match="regex"):
        decode_client(f'{{"type":"start","v":1,"audio":{{}},{field}}}')


def test_a_subscriber_ignores_fields_of_a_newer_server() -> None:
    message = decode_server('{"type":"heartbeat","v":1,"stream":"-","seq":3,"mood":"fine"}')
    assert message == Heartbeat(stream="-", seq=3)


def test_the_two_directions_share_no_type() -> None:
    tags = [
        {struct.__struct_config__.tag for struct in get_args(union)}
        for union in (ClientMessage, ServerMessage)
    ]
    assert tags[0].isdisjoint(tags[1])
