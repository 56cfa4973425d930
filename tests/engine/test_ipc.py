"""Messages between host and worker: what goes in comes out, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.frames import Segment
from voiced.engine import errors, ipc
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineLoad,
    Gear,
    Hotword,
    Request,
    RequestKind,
    Timings,
    Transcript,
    Word,
)

names = st.text(max_size=30)
counts = st.integers(0, 2**53)
finite = st.floats(allow_nan=False)
samples = st.binary(max_size=400).map(lambda data: data[: len(data) // 2 * 2])
word = st.builds(Word, text=names, start_ms=counts, end_ms=counts, confidence=finite)
transcript = st.builds(
    Transcript,
    segment=counts,
    revision=counts,
    text=st.text(),
    is_final=st.booleans(),
    language=names,
    confidence=finite,
    stable_chars=counts,
    words=st.lists(word, max_size=3).map(tuple),
    chances=st.lists(finite, max_size=3).map(tuple),
    n_best=st.lists(st.tuples(names, finite), max_size=3).map(tuple),
    timings=st.builds(Timings, queue_ms=finite, steps=counts),
    bundle=names,
)
load = st.builds(EngineLoad, queued_finals=counts, oldest_final_age_s=finite)
info = st.builds(
    EngineInfo,
    bundle=names,
    backend=names,
    languages=st.lists(names, max_size=3).map(tuple),
    max_segment_s=finite,
    load_ms=finite,
    warm_ms=finite,
    worker_pid=counts,
)
from_host = st.one_of(
    st.builds(
        ipc.Submit,
        job=counts,
        segment=counts,
        stream=names,
        start_sample=counts,
        kind=st.sampled_from(RequestKind),
        revision=counts,
        pcm=samples,
        language=st.none() | names,
        time_left_ns=st.none() | st.integers(-(2**60), 2**60),
    ),
    st.builds(ipc.Promote, job=counts, time_left_ns=st.none() | st.integers(-(2**60), 2**60)),
    st.builds(ipc.Cancel, segment=counts, job=st.none() | counts),
    st.just(ipc.Stop()),
)
from_worker = st.one_of(
    st.builds(ipc.Hello, pid=counts, protocol=counts),
    st.builds(ipc.Progress, text=names),
    st.builds(ipc.Ready, info=info),
    st.builds(ipc.Result, job=counts, transcript=transcript),
    st.builds(ipc.Failure, job=st.none() | counts, code=names, text=names),
    st.builds(
        ipc.Heartbeat,
        running=st.lists(counts, max_size=3).map(tuple),
        running_for_ns=counts,
        load=load,
        rss_bytes=counts,
        peak_rss_bytes=counts,
    ),
    st.just(ipc.Stopped()),
)


@given(from_host)
def test_what_the_host_sends_arrives(message: ipc.FromHost) -> None:
    assert ipc.decode_from_host(ipc.encode(message)) == message


@given(from_worker)
def test_what_the_worker_sends_arrives(message: ipc.FromWorker) -> None:
    assert ipc.decode_from_worker(ipc.encode(message)) == message


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_or_are_a_message(data: bytes) -> None:
    for decode in (ipc.decode_from_host, ipc.decode_from_worker):
        try:
            message = decode(data)
        except ipc.IpcError:
            continue
        assert decode(ipc.encode(message)) == message


@given(
    pcm=st.lists(st.integers(-32768, 32767), max_size=50),
    now_ns=counts,
    here_ns=counts,
    left_ns=st.none() | st.integers(-(10**12), 10**12),
    kind=st.sampled_from(RequestKind),
)
def test_a_request_keeps_its_audio_and_the_time_it_has_left(
    pcm: list[int], now_ns: int, here_ns: int, left_ns: int | None, kind: RequestKind
) -> None:
    segment = Segment(3, "mic", 160, np.array(pcm, dtype=np.int16), "en")
    deadline_ns = None if left_ns is None else now_ns + left_ns
    hotwords = (Hotword("Merneptah", 1.5), Hotword("车库门", 2.0))
    request = Request(segment, kind, 2, deadline_ns, hotwords)
    message = ipc.decode_from_host(ipc.encode(ipc.submit_of(9, request, now_ns)))
    assert isinstance(message, ipc.Submit)
    there = ipc.request_of(message, here_ns)
    assert there.segment.pcm.tolist() == pcm
    assert there.deadline_ns == (None if left_ns is None else here_ns + left_ns)
    assert (there.kind, there.revision, there.hotwords) == (kind, 2, hotwords)
    copy = there.segment
    assert (copy.id, copy.stream, copy.start_sample, copy.language) == (3, "mic", 160, "en")


@pytest.mark.parametrize(
    "error",
    [
        errors.BundleError(Path("m/manifest.json"), found="v2", expected="v1", next_step="rebuild"),
        errors.NoGearError(2, 3000, (Gear(400), Gear(1600, 4))),
        errors.EngineBusy(250),
        errors.BackendFailed("graph step failed"),
        errors.StateLost("graph server killed"),
        errors.DeadlineExceeded("too late"),
        errors.Superseded("newer"),
    ],
)
def test_an_error_arrives_with_its_class_text_and_facts(error: errors.EngineError) -> None:
    message = ipc.decode_from_worker(ipc.encode(ipc.failure_of(4, error)))
    assert isinstance(message, ipc.Failure)
    copy = ipc.error_of(message)
    assert type(copy) is type(error)
    assert (str(copy), copy.code, copy.args) == (str(error), error.code, error.args)


def test_an_unknown_code_stays_an_engine_error_with_that_code() -> None:
    error = ipc.error_of(ipc.Failure(None, "from_the_future", "news"))
    assert type(error) is errors.EngineError
    assert (error.code, str(error)) == ("from_the_future", "news")
    assert errors.EngineError.code == "engine"


def test_a_numpy_number_in_a_transcript_crosses_as_a_plain_one() -> None:
    confidence: float = np.float32(0.5)  # type: ignore[assignment]
    result = Transcript(1, 1, "hi", is_final=True, language="en", confidence=confidence)
    message = ipc.decode_from_worker(ipc.encode(ipc.Result(1, result)))
    assert isinstance(message, ipc.Result)
    assert message.transcript.confidence == 0.5
    assert type(message.transcript.confidence) is float


def test_odd_and_oversized_audio_is_refused() -> None:
    submit = ipc.Submit(1, 1, "s", 0, RequestKind.FINAL, 1, b"abc")
    with pytest.raises(ipc.IpcError, match="3 bytes"):
        ipc.request_of(submit, 0)
    large = msgspec.structs.replace(submit, pcm=bytes(2 * ipc.MAX_SEGMENT_SAMPLES + 2))
    with pytest.raises(ipc.IpcError):
        ipc.decode_from_host(ipc.encode(large))
    with pytest.raises(ipc.IpcError, match="expected at most"):
        ipc.decode_from_host(bytes(ipc.MAX_MESSAGE_BYTES + 1))


def test_the_launch_line_is_one_line_and_comes_back() -> None:
    launch = ipc.Launch(EngineConfig("a\nb", options={"x": "y\n"}), "ipc:///run/x", 20)
    line = ipc.encode_launch(launch)
    assert line.count(b"\n") == 1
    assert ipc.decode_launch(line) == launch
    with pytest.raises(ipc.IpcError):
        ipc.decode_launch(b"{}\n")
