"""The engine's thread: who is inside the batch at each step, and what each is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest
from tests.engine.test_scheduler import make_job
from tests.engine.tiny_whisper import build_tiny_host_whisper

from voiced.audio.clock import FakeClock
from voiced.audio.frames import Segment
from voiced.engine.batch import Answer, Batch, Lockstep, batch_of
from voiced.engine.errors import (
    BackendFailed,
    DeadlineExceeded,
    EngineError,
    StateLost,
    Superseded,
    UnknownLanguage,
)
from voiced.engine.families.whisper_batch import WhisperBatch
from voiced.engine.loop import FinalsFirst, run_engine
from voiced.engine.recognizer import Recognizer, load_recognizer
from voiced.engine.scheduler import Scheduler
from voiced.engine.types import (
    BatchLoad,
    EngineConfig,
    EngineInfo,
    EngineTotals,
    Gear,
    GearUse,
    Request,
    RequestKind,
    Transcript,
)


def transcript(request: Request) -> Transcript:
    return Transcript(
        segment=request.segment.id,
        revision=request.revision,
        text="x",
        is_final=True,
        language="en",
        confidence=1.0,
    )


class Steps:
    """A recogniser and its batch: a request takes as many steps as its segment has hundreds of
    samples; `script` is told before each step and may fail it."""

    max_batch = 2
    info = EngineInfo("steps@0", "none", ("en",), 30.0, 0.0, 0.0, 0)

    def __init__(self, room: int = 2) -> None:
        self.room = room
        self.left: dict[int, int] = {}
        self.requests: dict[int, Request] = {}
        self.seen: list[tuple[int, ...]] = []
        self.script: dict[int, EngineError | Exception] = {}
        self.between: dict[int, object] = {}

    def open_batch(self) -> Batch:
        return self

    def __len__(self) -> int:
        return len(self.left)

    def admits(self, request: Request) -> bool:
        return len(self.left) < self.room

    def join(self, ticket: int, request: Request) -> None:
        if request.segment.language == "xx":
            raise BackendFailed("cannot encode")
        self.left[ticket] = len(request.segment.pcm) // 100
        self.requests[ticket] = request

    def step(self) -> list[tuple[int, Answer]]:
        number = len(self.seen)
        self.seen.append(tuple(self.left))
        if number in self.script:
            raise self.script[number]
        if number in self.between:
            self.between[number]()  # type: ignore[operator]
        self.left = {ticket: steps - 1 for ticket, steps in self.left.items()}
        done = [ticket for ticket, steps in self.left.items() if steps == 0]
        for ticket in done:
            del self.left[ticket]
        return [(ticket, transcript(self.requests[ticket])) for ticket in done]

    def leave(self, ticket: int) -> None:
        del self.left[ticket]

    def clear(self) -> None:
        self.left.clear()

    def load(self) -> BatchLoad:
        return BatchLoad(running=len(self.left))

    # what a Recognizer has besides

    totals = EngineTotals(to_device_bytes=7)

    def warm(self, progress: object) -> None: ...
    def batch_key(self, request: Request) -> object:
        return None

    def recognize(self, requests: Sequence[Request]) -> list[Answer]:
        return [transcript(r) for r in requests]

    def close(self) -> None: ...


class Desk:
    """A queue, a clock, and the answers in the order in which they came."""

    def __init__(self, steps: Steps) -> None:
        self.clock = FakeClock()
        self.queue = FinalsFirst(Scheduler(), self.clock)
        self.steps = steps
        self.answers: list[tuple[int, str]] = []

    def submit(self, job_id: int, **facts: object) -> None:
        job = make_job(job_id, segment=job_id, **facts)  # type: ignore[arg-type]
        for drop in self.queue.submit(job):
            self.answer(drop.job.id, drop.error or Superseded(""))

    def answer(self, job_id: int, outcome: Answer) -> None:
        code = outcome.code if isinstance(outcome, EngineError) else outcome.text
        self.answers.append((job_id, code))

    def run(self) -> None:
        self.queue.stop()
        run_engine(self.steps, self.queue, self.answer, self.clock)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def desk(steps: Steps) -> Desk:
    return Desk(steps)


def test_a_request_joins_at_the_next_step_and_leaves_when_it_is_done(
    steps: Steps, desk: Desk
) -> None:
    desk.submit(1, samples=500)
    steps.between = {1: lambda: desk.submit(2, samples=100), 2: lambda: desk.submit(3, samples=200)}
    desk.run()
    assert steps.seen == [(1,), (1,), (1, 2), (1, 3), (1, 3)]
    assert desk.answers == [(2, "x"), (1, "x"), (3, "x")]


def test_newcomers_join_one_at_a_step_where_others_are_at_work(steps: Steps, desk: Desk) -> None:
    steps.room = 4
    for n in (1, 2):
        desk.submit(n, samples=500)
    steps.between = {0: lambda: [desk.submit(n, samples=300) for n in (3, 4)]}
    desk.run()
    assert steps.seen[:3] == [(1, 2), (1, 2, 3), (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", ["partial", "eager", "final"])
def test_what_runs_is_withdrawn_at_the_next_step(steps: Steps, desk: Desk, kind: str) -> None:
    desk.submit(1, samples=900, kind=kind)
    steps.between = {2: lambda: desk.queue.cancel(1)}
    desk.run()
    assert len(steps.seen) == 3
    assert desk.answers == []


def test_what_runs_past_its_deadline_is_stopped(steps: Steps, desk: Desk) -> None:
    desk.submit(1, samples=900, deadline_ns=desk.clock.monotonic_ns() + 50)
    steps.between = {1: lambda: desk.clock.advance_ms(1)}
    desk.run()
    assert desk.answers == [(1, DeadlineExceeded.code)]
    assert len(steps.seen) == 2


def test_a_final_takes_the_place_of_a_partial_that_runs(steps: Steps, desk: Desk) -> None:
    steps.room = 1
    desk.submit(1, samples=900, kind="partial")
    steps.between = {1: lambda: desk.submit(2, samples=100)}
    desk.run()
    assert desk.answers == [(1, Superseded.code), (2, "x")]
    assert steps.seen == [(1,), (1,), (2,)]


def test_a_promoted_request_keeps_its_place(steps: Steps, desk: Desk) -> None:
    steps.room = 1
    desk.submit(1, samples=300, kind="eager")
    steps.between = {0: lambda: (desk.queue.promote(1, None), desk.submit(2, samples=100))}
    desk.run()
    assert desk.answers == [(1, "x"), (2, "x")]


def test_after_a_failed_step_each_runs_alone_and_the_guilty_one_fails(
    steps: Steps, desk: Desk
) -> None:
    for n in (1, 2):
        desk.submit(n, samples=200)
    steps.script = {1: RuntimeError("bug"), 3: BackendFailed("again")}
    desk.run()
    assert steps.seen == [(1, 2), (1, 2), (1,), (1,), (2,), (2,)]
    assert desk.answers == [(1, BackendFailed.code), (2, "x")]


def test_lost_state_begins_the_batch_again_once(steps: Steps, desk: Desk) -> None:
    for n in (1, 2):
        desk.submit(n, samples=200)
    steps.script = {1: StateLost("gone")}
    desk.run()
    assert steps.seen == [(1, 2), (1, 2), (1, 2), (1, 2)]
    assert desk.answers == [(1, "x"), (2, "x")]


def test_one_that_cannot_be_encoded_costs_the_others_nothing(steps: Steps, desk: Desk) -> None:
    desk.submit(1, samples=300)
    pcm = np.zeros(100, np.int16)

    def add() -> None:
        job = make_job(2, segment=2)
        request = Request(Segment(2, "a", 0, pcm, "xx"))
        desk.queue.submit(type(job)(2, request, 0))

    steps.between = {0: add}
    desk.run()
    assert desk.answers == [(2, BackendFailed.code), (1, "x")]


def test_a_withdrawn_suspect_does_not_run(steps: Steps, desk: Desk) -> None:
    for n in (1, 2):
        desk.submit(n, samples=200)
    steps.script = {0: BackendFailed("once")}
    steps.between = {1: lambda: desk.queue.cancel(2)}
    desk.run()
    assert steps.seen == [(1, 2), (1,), (1,)]
    assert desk.answers == [(1, "x")]


def test_steps_and_those_who_share_them_are_counted(desk: Desk) -> None:
    for n, samples in enumerate((300, 100)):
        desk.submit(n, samples=samples)
    desk.run()
    assert desk.steps.seen == [(0, 1), (0,), (0,)]
    done = desk.queue.load().totals
    assert (done.steps, done.step_requests) == (3, 4)
    assert done.to_device_bytes == 7, "the recogniser's own count"


def test_lockstep_takes_requests_of_one_key_up_to_the_limit() -> None:
    class Plain:
        max_batch = 2

        def batch_key(self, request: Request) -> object:
            return len(request.segment.pcm)

        def recognize(self, requests: Sequence[Request]) -> list[Answer]:
            return [transcript(r) for r in requests][: self.answers]

        answers = 9

    plain = Plain()
    batch = batch_of(plain)  # type: ignore[arg-type]
    assert isinstance(batch, Lockstep)
    short, longer = (make_job(1, samples=n).request for n in (100, 200))
    assert batch.admits(longer)
    batch.join(7, short)
    assert not batch.admits(longer)
    assert batch.admits(short)
    batch.join(8, short)
    assert not batch.admits(short)
    plain.answers = 1
    with pytest.raises(BackendFailed, match="1 answers to 2"):
        batch.step()
    plain.answers = 9
    assert [ticket for ticket, _ in batch.step()] == [7, 8]
    assert len(batch) == 0
    assert batch.step() == []


# ---- Whisper's batch, with weights that mean nothing --------------------------------------------


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recognizer]:
    bundle = build_tiny_host_whisper(tmp_path_factory.mktemp("bundle") / "tiny")
    with closing(load_recognizer(EngineConfig(str(bundle), max_batch=3))) as recognizer:
        yield recognizer


@pytest.fixture
def batch(recognizer: Recognizer) -> Iterator[WhisperBatch]:
    batch = batch_of(recognizer)
    assert isinstance(batch, WhisperBatch)
    yield batch
    batch.clear()


def noise(
    segment: int, seconds: float, *, kind: str = "final", language: str | None = "en"
) -> Request:
    rng = np.random.default_rng(segment)
    pcm = rng.integers(-9_000, 9_000, round(seconds * 16_000)).astype(np.int16)
    return Request(Segment(segment, "a", 0, pcm, language), RequestKind(kind))


def said(answer: Answer) -> tuple[str, str, float]:
    assert isinstance(answer, Transcript)
    return answer.text, answer.language, round(answer.confidence, 4)


def test_texts_are_the_same_in_company_and_alone(
    recognizer: Recognizer, batch: WhisperBatch
) -> None:
    requests = [
        noise(1, 2.0),
        noise(2, 5.0, language=None),
        noise(3, 1.0, kind="partial"),
        noise(4, 31.0),
        noise(5, 3.0, language="zh"),
    ]
    alone = {r.segment.id: said(recognizer.recognize([r])[0]) for r in requests}
    assert len(set(alone.values())) > 1
    found: dict[int, Answer] = {}
    waiting = list(requests)
    while waiting or len(batch):
        if waiting and batch.admits(waiting[0]):
            request = waiting.pop(0)
            batch.join(request.segment.id, request)
        found.update(batch.step())
    assert {ticket: said(answer) for ticket, answer in found.items()} == alone


def test_silence_and_an_unknown_language_are_answered_without_a_slot(batch: WhisperBatch) -> None:
    batch.join(1, Request(Segment(1, "a", 0, np.zeros(16_000, np.int16), "en")))
    batch.join(2, noise(2, 1.0, language="tlh"))
    assert len(batch) == 2
    (first, silent), (second, refused) = batch.step()
    assert (first, second) == (1, 2)
    assert said(silent)[0] == ""
    assert isinstance(refused, UnknownLanguage)


def test_slots_are_bounded_and_free_again_when_one_leaves(batch: WhisperBatch) -> None:
    for n in (1, 2, 3):
        assert batch.admits(noise(n, 2.0))
        batch.join(n, noise(n, 2.0))
    load = batch.load()
    assert (load.running, load.padding) == (3, 0)
    assert load.positions > 0
    assert not batch.admits(noise(4, 2.0))
    batch.leave(2)
    assert batch.admits(noise(4, 2.0))
    batch.join(4, noise(4, 4.1))
    assert batch.load().padding > 0


def test_use_of_gears_and_bytes_to_the_device_are_counted(recognizer: Recognizer) -> None:
    before = recognizer.totals
    recognizer.recognize([noise(1, 4.1), noise(2, 4.15)])
    done = recognizer.totals
    gear = Gear(424)  # 4.25 s, rounded down
    old = {use.gear: use for use in before.gears}.get(gear, GearUse(gear))
    new = {use.gear: use for use in done.gears}[gear]
    assert (new.runs - old.runs, new.inputs - old.inputs) == (2, 2)
    assert new.heard_frames - old.heard_frames == 410 + 415
    assert new.gear_frames - old.gear_frames == 2 * 424
    assert done.to_device_bytes > before.to_device_bytes
    assert done.from_device_bytes > before.from_device_bytes
