"""What a client holds against a server that breaks its promises."""

from __future__ import annotations

import pytest

from voiced.bench.ledger import MOST_APART, MOST_SHOWN, Sequence, StreamLedger, Twin, Violations
from voiced.daemon import wire

S = "desk"


def ready() -> wire.Ready:
    return wire.Ready(stream=S, bundle="b", rate_hz=16_000)


def started(segment: int) -> wire.SpeechStarted:
    return wire.SpeechStarted(stream=S, segment=segment, start_ms=0)


def partial(segment: int, revision: int) -> wire.Partial:
    return wire.Partial(
        stream=S, segment=segment, revision=revision, text="x", start_ms=0, end_ms=9, language="en"
    )


def spoke(segment: int) -> wire.SpeechEnded:
    return wire.SpeechEnded(stream=S, segment=segment, start_ms=0, end_ms=9, reason="silence")


def final(segment: int, revision: int, text: str = "x") -> wire.Final:
    return wire.Final(
        stream=S,
        segment=segment,
        revision=revision,
        text=text,
        language="en",
        confidence=1.0,
        start_ms=0,
        end_ms=9,
        latency_ms=1,
    )


def failed(segment: int) -> wire.Failed:
    return wire.Failed(stream=S, segment=segment, code="deadline", message="late")


def ended(segments: int) -> wire.Ended:
    return wire.Ended(stream=S, audio_ms=9, segments=segments)


GOOD: list[wire.ServerMessage] = [
    *(ready(), started(1), partial(1, 1), partial(1, 3), spoke(1), started(2), final(1, 4)),
    *(spoke(2), failed(2), started(3), final(3, 1, ""), ended(3)),
]


def test_a_server_that_keeps_its_promises_has_none_held_against_it() -> None:
    ledger = StreamLedger(S)
    for message in GOOD:
        ledger.take(message)
    ledger.close()
    assert ledger.violations == Violations()
    assert (ledger.announced, ledger.finals, ledger.failed, ledger.partials) == (
        *(3, 2),
        {"deadline": 1},
        2,
    )
    assert ledger.is_over
    assert ledger.open_segments == 0


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ready(), started(1)], "segment 1 got no last word"),
        ([ready(), started(1), final(1, 1), final(1, 2)], "final of segment 1, which has its last"),
        ([ready(), started(1), final(1, 1), partial(1, 2)], "partial of segment 1, which has its"),
        ([ready(), started(1), final(1, 1), failed(1)], "failed of segment 1, which is not open"),
        ([ready(), final(1, 1)], "final of segment 1, which was not announced"),
        ([ready(), started(2), final(2, 1), started(1), final(1, 1)], "segment 1 announced after"),
        ([ready(), started(1), partial(1, 2), partial(1, 2), final(1, 3)], "revision 2 after 2"),
        ([ready(), started(1), partial(1, 2), final(1, 2)], "has revision 2 after 2"),
        ([started(1), final(1, 1)], "segment 1 before ready"),
        ([ready(), ready()], "a second ready"),
        ([ready(), spoke(1)], "speech_ended of segment 1, which is not open"),
        ([ready(), ended(0), started(1), final(1, 1)], "after the end of the stream"),
        ([ready(), ended(2)], "ended after 2 segments, seen 0"),
    ],
)
def test_a_broken_promise_is_named(messages: list[wire.ServerMessage], says: str) -> None:
    ledger = StreamLedger(S)
    for message in messages:
        ledger.take(message)
    ledger.close()
    assert any(says in text for text in ledger.violations.shown), ledger.violations.shown


def test_nothing_is_kept_of_what_was_settled_and_few_violations_as_text() -> None:
    ledger = StreamLedger(S)
    ledger.take(ready())
    for segment in range(1, 1_000):
        ledger.take(started(segment))
        ledger.take(final(segment, 1))
        ledger.take(final(segment, 1))
        assert ledger.open_segments == 0
    assert ledger.violations.count == 999
    assert len(ledger.violations.shown) == MOST_SHOWN


def test_two_channels_that_say_the_same_agree_whichever_is_first_and_partials_may_differ() -> None:
    twin = Twin(S, "WebSocket", "bus")
    for message in GOOD:
        twin.take(0, message)
    for message in GOOD:
        if not isinstance(message, wire.Partial):
            twin.take(1, message)
    twin.close()
    assert twin.violations == Violations()
    assert twin.compared == 9


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([final(1, 1, "a")], [final(1, 1, "b")], "bus says something else with final"),
        ([final(1, 1), final(2, 1)], [final(1, 1)], "1 messages came on WebSocket only"),
        ([], [failed(1)], "1 messages came on bus only"),
        ([started(n) for n in range(MOST_APART + 1)], [], "bus is missing more than"),
    ],
)
def test_channels_that_differ_are_noticed(
    first: list[wire.ServerMessage], second: list[wire.ServerMessage], says: str
) -> None:
    twin = Twin(S, "WebSocket", "bus")
    for message in first:
        twin.take(0, message)
    for message in second:
        twin.take(1, message)
    twin.close()
    assert any(says in text for text in twin.violations.shown), twin.violations.shown


def test_gaps_on_the_bus_are_counted_and_a_new_epoch_is_a_restart() -> None:
    def numbered(seq: int, epoch: str = "a") -> wire.Heartbeat | wire.Failed:
        return wire.Failed(stream=S, segment=1, code="c", message="", seq=seq, epoch=epoch)

    def beat(seq: int) -> wire.Heartbeat:
        return wire.Heartbeat(stream="-", seq=seq, epoch="a")

    bus = Sequence()
    for message in (beat(4), numbered(5), numbered(6), beat(6), numbered(9), beat(11)):
        bus.take(message)
    assert (bus.lost, bus.restarts) == (2 + 2, 0)
    bus.take(numbered(1, "b"))
    assert (bus.lost, bus.restarts) == (4, 1)
