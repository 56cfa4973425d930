"""What runs next: every accepted request leaves once, finals first, streams in turn."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from voiced.audio.frames import Segment
from voiced.engine.errors import DeadlineExceeded, EngineBusy, Superseded
from voiced.engine.scheduler import DROP_REASONS, PASSED_NS, SIMILAR_AGE_NS, Dropped, Job, Scheduler
from voiced.engine.types import Request, RequestKind

MS = 1_000_000


def make_job(
    job_id: int,
    *,
    segment: int = 1,
    stream: str = "a",
    kind: str = "final",
    revision: int = 1,
    accepted_ns: int = 0,
    deadline_ns: int | None = None,
    samples: int = 160,
) -> Job:
    pcm = np.zeros(samples, dtype=np.int16)
    request = Request(
        Segment(segment, stream, 0, pcm), RequestKind(kind), revision, deadline_ns=deadline_ns
    )
    return Job(job_id, request, accepted_ns)


def by_length(request: Request) -> Hashable:
    return len(request.segment.pcm)


def ids(items: list[Job] | list[Dropped]) -> list[int]:
    return [item.job.id if isinstance(item, Dropped) else item.id for item in items]


def batch_of(scheduler: Scheduler, now_ns: int, max_batch: int) -> list[Job]:
    """Let as many jobs of one kind and length run as may, to their end."""
    taken: list[Job] = []

    def admits(request: Request) -> bool:
        if not taken:
            return True
        first = taken[0].request
        alike = request.kind is first.kind and by_length(request) == by_length(first)
        return alike and len(taken) < max_batch

    while (job := scheduler.take(now_ns, admits)) is not None:
        taken.append(job)
    for job in taken:
        assert scheduler.finish(job.id) is job
    return taken


def anything(_: Request) -> bool:
    return True


def nothing(_: Request) -> bool:
    return False


def test_finals_run_before_partials_that_came_earlier() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, kind="partial"))
    scheduler.submit(make_job(2, segment=2))
    assert ids(batch_of(scheduler, 0, 4)) == [2]
    assert ids(batch_of(scheduler, 0, 4)) == [1]
    assert batch_of(scheduler, 0, 4) == []


def test_only_the_newest_partial_of_a_segment_waits() -> None:
    scheduler = Scheduler()
    assert scheduler.submit(make_job(1, kind="partial", revision=1)) == []
    dropped = scheduler.submit(make_job(2, kind="partial", revision=2))
    assert ids(dropped) == [1]
    assert isinstance(dropped[0].error, Superseded)
    late = scheduler.submit(make_job(3, kind="partial", revision=1))
    assert ids(late) == [3]
    assert ids(batch_of(scheduler, 0, 4)) == [2]


def test_a_final_takes_the_place_of_its_segments_partial() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, kind="partial"))
    scheduler.submit(make_job(2, segment=2, kind="partial"))
    assert ids(scheduler.submit(make_job(3, segment=1))) == [1]
    assert ids(scheduler.submit(make_job(4, segment=1, kind="partial", revision=9))) == [4]


def test_eager_requests_run_between_finals_and_partials() -> None:
    scheduler = Scheduler()
    for n, kind in enumerate(["partial", "eager", "final"]):
        scheduler.submit(make_job(n, segment=n, kind=kind))
    assert [ids(batch_of(scheduler, 0, 4)) for _ in range(4)] == [[2], [1], [0], []]


def test_an_eager_request_takes_the_place_of_its_segments_partials_and_older_ones() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, kind="partial"))
    scheduler.submit(make_job(2, segment=2, kind="partial"))
    dropped = scheduler.submit(make_job(3, kind="eager", revision=2))
    assert ids(dropped) == [1]
    assert "partial 1 of segment 1 gave way to its eager" in str(dropped[0].error)
    assert ids(scheduler.submit(make_job(4, kind="partial", revision=9))) == [4]
    assert ids(scheduler.submit(make_job(5, kind="eager", revision=3))) == [3]
    assert ids(scheduler.submit(make_job(6, revision=4))) == [5]
    assert ids(scheduler.submit(make_job(7, kind="eager", revision=5))) == [7]


def test_too_many_eager_requests_drop_the_oldest() -> None:
    scheduler = Scheduler(max_queued_eager=2)
    scheduler.submit(make_job(1, segment=1, kind="eager"))
    scheduler.submit(make_job(2, segment=2, kind="eager"))
    assert ids(scheduler.submit(make_job(3, segment=3, kind="eager"))) == [1]


def test_a_promoted_request_is_a_final_of_its_old_age_and_its_new_deadline() -> None:
    scheduler = Scheduler(max_queued_finals=1)
    scheduler.submit(make_job(1, segment=1, accepted_ns=5))
    scheduler.submit(make_job(2, segment=2, kind="eager", accepted_ns=2, deadline_ns=10))
    assert scheduler.promote(2, 30), "a full queue refuses no promotion"
    assert not scheduler.promote(2, 30)
    assert not scheduler.promote(1, 30)
    assert scheduler.load(7).queued_finals == 2
    assert scheduler.expire(20) == []
    assert [ids(batch_of(scheduler, 20, 1)) for _ in range(2)] == [[2], [1]]


def test_streams_take_turns_among_finals_of_similar_age() -> None:
    scheduler = Scheduler()
    for n in range(3):
        scheduler.submit(make_job(n, segment=n, stream="busy", accepted_ns=n))
    scheduler.submit(make_job(10, segment=10, stream="quiet", accepted_ns=10))
    order = [ids(batch_of(scheduler, 20, 1))[0] for _ in range(4)]
    assert order == [0, 10, 1, 2]


def test_a_much_older_final_is_not_passed_for_fairness() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, stream="busy"))
    scheduler.submit(make_job(2, segment=2, stream="busy", accepted_ns=1))
    scheduler.submit(make_job(3, segment=3, stream="quiet", accepted_ns=SIMILAR_AGE_NS + 2))
    order = [ids(batch_of(scheduler, 0, 1))[0] for _ in range(3)]
    assert order == [1, 2, 3]


def test_a_batch_holds_requests_of_one_key_only() -> None:
    scheduler = Scheduler()
    for n, samples in enumerate([160, 320, 160, 160]):
        scheduler.submit(make_job(n, segment=n, accepted_ns=n, samples=samples))
    assert ids(batch_of(scheduler, 9, 2)) == [0, 2]
    assert ids(batch_of(scheduler, 9, 2)) == [1]
    assert ids(batch_of(scheduler, 9, 2)) == [3]


def test_a_request_past_its_deadline_fails_and_never_runs() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, deadline_ns=5 * MS))
    assert scheduler.expire(5 * MS) == []
    assert batch_of(scheduler, 6 * MS, 4) == []
    dropped = scheduler.expire(6 * MS)
    assert ids(dropped) == [1]
    assert isinstance(dropped[0].error, DeadlineExceeded)
    assert "waited 6 ms" in str(dropped[0].error)
    assert len(scheduler) == 0


def test_a_late_final_does_not_hold_up_partials() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, deadline_ns=1))
    scheduler.submit(make_job(2, segment=2, kind="partial"))
    assert ids(batch_of(scheduler, 2, 4)) == [2]


def test_cancel_takes_one_job_or_the_whole_segment() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1))
    scheduler.submit(make_job(2, segment=1))
    scheduler.submit(make_job(3, segment=2))
    assert ids(scheduler.cancel(1, 2)) == [2]
    assert scheduler.cancel(2, 1) == []
    assert ids(scheduler.cancel(1)) == [1]
    assert ids(batch_of(scheduler, 0, 4)) == [3]


def test_a_full_queue_refuses_finals_and_says_when_to_come_back() -> None:
    scheduler = Scheduler(max_queued_finals=2)
    scheduler.submit(make_job(1, segment=1))
    scheduler.submit(make_job(2, segment=2))
    with pytest.raises(EngineBusy) as refused:
        scheduler.submit(make_job(3, segment=3, accepted_ns=700 * MS))
    assert refused.value.retry_after_ms == 700
    assert len(scheduler) == 2


def test_too_many_partials_drop_the_oldest() -> None:
    scheduler = Scheduler(max_queued_partials=2)
    scheduler.submit(make_job(1, segment=1, kind="partial"))
    scheduler.submit(make_job(2, segment=2, kind="partial"))
    assert ids(scheduler.submit(make_job(3, segment=3, kind="partial"))) == [1]


def test_load_counts_what_waits_and_how_long() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, accepted_ns=0))
    scheduler.submit(make_job(2, segment=2, kind="partial"))
    scheduler.submit(make_job(3, segment=3, kind="eager", accepted_ns=500 * MS))
    load = scheduler.load(2_000 * MS)
    assert (load.queued_finals, load.queued_eager, load.queued_partials) == (1, 1, 1)
    ages_s = (load.oldest_final_age_s, load.oldest_eager_age_s, load.oldest_partial_age_s)
    assert ages_s == (2.0, 1.5, 2.0)


def test_what_is_dropped_is_counted_by_kind_and_reason() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, kind="partial"))
    scheduler.submit(make_job(2, segment=1, kind="eager"))
    scheduler.cancel(1)
    scheduler.submit(make_job(3, segment=3, deadline_ns=1))
    scheduler.expire(2)
    scheduler.submit(make_job(4, segment=4, kind="partial"))
    scheduler.take(2, anything)
    scheduler.submit(make_job(5, segment=5))
    scheduler.evict(2, nothing)
    assert scheduler.load(2).totals.dropped == {
        "partial superseded": 1,
        "eager withdrawn": 1,
        "final deadline": 1,
        "partial made_room": 1,
    }
    reasons = {name.split()[1] for name in scheduler.load(2).totals.dropped}
    assert reasons == {*DROP_REASONS}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=24), st.integers(1, 4))
def test_streams_that_all_wait_are_served_evenly(streams: list[str], max_batch: int) -> None:
    scheduler = Scheduler()
    left = {name: streams.count(name) for name in set(streams)}
    for n, stream in enumerate(streams):
        scheduler.submit(make_job(n, segment=n, stream=stream, accepted_ns=n))
    served = dict.fromkeys(left, 0)
    while batch := batch_of(scheduler, 99, max_batch):
        for job in batch:
            name = job.request.segment.stream
            served[name] += 1
            waiting = [served[other] for other in served if served[other] < left[other]]
            assert all(served[name] <= count + 1 for count in waiting)
    assert served == left


def test_partials_wait_while_anything_more_urgent_runs() -> None:
    for urgent in ("final", "eager"):
        scheduler = Scheduler()
        scheduler.submit(make_job(1, segment=1, kind=urgent))
        scheduler.submit(make_job(2, segment=2, kind="partial"))
        assert scheduler.take(0, anything) is not None
        assert scheduler.take(0, anything) is None
        scheduler.finish(1)
        taken = scheduler.take(0, anything)
        assert taken is not None
        assert taken.id == 2


def test_a_final_joins_a_partial_that_runs() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, kind="partial"))
    scheduler.take(0, anything)
    scheduler.submit(make_job(2, segment=2))
    assert scheduler.evict(0, anything) == []
    assert scheduler.take(0, anything) is not None
    assert [job.id for job in scheduler.running] == [1, 2]


def test_a_partial_makes_room_for_a_final_that_does_not_fit_beside_it() -> None:
    scheduler = Scheduler()
    for n in (1, 2):
        scheduler.submit(make_job(n, segment=n, kind="partial"))
        scheduler.take(0, anything)
    scheduler.submit(make_job(3, segment=3, kind="eager"))
    scheduler.take(0, anything)
    scheduler.submit(make_job(4, segment=4))
    gone = []
    while dropped := scheduler.evict(0, nothing):
        assert all(isinstance(drop.error, Superseded) for drop in dropped)
        gone += ids(dropped)
    assert gone == [2, 1, 3], "the least urgent first, and of those the youngest"
    assert len(scheduler) == 1


def test_finals_never_make_room_for_each_other() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, kind="eager"))
    scheduler.take(0, anything)
    scheduler.promote(1, None)
    scheduler.submit(make_job(2, segment=2))
    assert scheduler.evict(0, nothing) == []


def test_what_is_withdrawn_or_late_leaves_at_the_next_step() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, kind="eager"))
    scheduler.submit(make_job(2, segment=2, kind="eager", deadline_ns=5))
    for _ in range(2):
        scheduler.take(0, anything)
    assert scheduler.cancel(1) == []
    assert [(drop.job.id, drop.error) for drop in scheduler.evict(4, anything)] == [(1, None)]
    (late,) = scheduler.evict(6, anything)
    assert (late.job.id, type(late.error)) == (2, DeadlineExceeded)
    assert scheduler.running == ()
    assert scheduler.finish(2) is None


def test_a_request_that_does_not_fit_is_passed_for_a_second_only() -> None:
    scheduler = Scheduler()
    scheduler.submit(make_job(1, segment=1, samples=320))
    for n in (2, 3):
        scheduler.submit(make_job(n, segment=n, accepted_ns=n, samples=160))

    def small(request: Request) -> bool:
        return by_length(request) == 160

    passed = scheduler.take(PASSED_NS, small)
    assert passed is not None
    assert passed.id == 2
    assert scheduler.take(PASSED_NS + 1, small) is None
    taken = scheduler.take(PASSED_NS + 1, anything)
    assert taken is not None
    assert taken.id == 1


class AnyOrder(RuleBasedStateMachine):
    """Any sequence of calls: each accepted job leaves exactly once."""

    jobs: Bundle[Job] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_queued_finals=4, max_queued_eager=2, max_queued_partials=3)
        self.now_ns = 0
        self.next_id = 0
        self.inside: dict[int, Job] = {}
        """Waiting."""
        self.running: dict[int, Job] = {}
        self.withdrawn: set[int] = set()

    def leave(self, jobs: list[Job]) -> None:
        for job in jobs:
            assert job.id in self.inside, "left twice, or never accepted"
            del self.inside[job.id]

    def admits(self, request: Request) -> bool:
        """Three of one length fit beside each other."""
        lengths = {by_length(job.request) for job in self.running.values()} - {by_length(request)}
        return not lengths and len(self.running) < 3

    @rule(
        target=jobs,
        segment=st.integers(1, 5),
        stream=st.sampled_from("ab"),
        kind=st.sampled_from(["final", "eager", "partial"]),
        revision=st.integers(1, 4),
        lasts_ns=st.none() | st.integers(0, 20),
        samples=st.sampled_from([160, 320]),
    )
    def submit(
        self,
        segment: int,
        stream: str,
        kind: str,
        revision: int,
        lasts_ns: int | None,
        samples: int,
    ) -> Job:
        self.next_id += 1
        job = make_job(
            self.next_id,
            segment=segment,
            stream=stream,
            kind=kind,
            revision=revision,
            accepted_ns=self.now_ns,
            deadline_ns=None if lasts_ns is None else self.now_ns + lasts_ns,
            samples=samples,
        )
        finals = sum(other.is_final for other in self.inside.values())
        try:
            dropped = self.scheduler.submit(job)
        except EngineBusy:
            assert job.is_final
            assert finals >= 4
            return job
        self.inside[job.id] = job
        assert all(not drop.job.is_final for drop in dropped), "a final gave way"
        self.leave([drop.job for drop in dropped])
        return job

    @rule(job=consumes(jobs), lasts_ns=st.none() | st.integers(0, 20))
    def promote(self, job: Job, lasts_ns: int | None) -> None:
        place = next((p for p in (self.inside, self.running) if job.id in p), None)
        deadline_ns = None if lasts_ns is None else self.now_ns + lasts_ns
        promoted = self.scheduler.promote(job.id, deadline_ns)
        if place is self.inside and place is not None:
            assert promoted == (job.request.kind is RequestKind.EAGER)
        if place is not None and promoted:
            place[job.id] = job.promoted(deadline_ns)
        assert place is not None or not promoted

    @rule(ns=st.integers(1, 30))
    def wait(self, ns: int) -> None:
        self.now_ns += ns

    @rule()
    def expire(self) -> None:
        dropped = self.scheduler.expire(self.now_ns)
        assert all(drop.job.is_late(self.now_ns) for drop in dropped)
        self.leave([drop.job for drop in dropped])
        assert not any(job.is_late(self.now_ns) for job in self.inside.values())

    @rule(job=consumes(jobs), only_this=st.booleans())
    def cancel(self, job: Job, only_this: bool) -> None:
        segment = job.request.segment.id
        meant = {i for i, j in self.running.items() if j.request.segment.id == segment}
        self.withdrawn |= meant & {job.id} if only_this else meant
        self.leave(self.scheduler.cancel(segment, job.id if only_this else None))
        assert job.id not in self.inside

    @rule()
    def take(self) -> None:
        urgency = [RequestKind.FINAL, RequestKind.EAGER, RequestKind.PARTIAL]
        in_time = [job for job in self.inside.values() if not job.is_late(self.now_ns)]
        first = min((urgency.index(job.request.kind) for job in in_time), default=0)
        job = self.scheduler.take(self.now_ns, self.admits)
        if job is None:
            assert self.running or not in_time, "nothing runs although something waits"
            return
        assert job.request.kind is urgency[first]
        assert self.admits(job.request)
        self.leave([job])
        self.running[job.id] = job

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.running:
            job_id = data.draw(st.sampled_from(sorted(self.running)))
            assert self.scheduler.finish(job_id) is not None
            assert self.scheduler.finish(job_id) is None
            del self.running[job_id]
            self.withdrawn.discard(job_id)

    @rule()
    def evict(self) -> None:
        for drop in self.scheduler.evict(self.now_ns, self.admits):
            job = self.running.pop(drop.job.id)
            if job.id in self.withdrawn:
                assert drop.error is None
                self.withdrawn.discard(job.id)
            elif not job.is_late(self.now_ns):
                assert not job.is_final, "a final gave its place away"
                assert isinstance(drop.error, Superseded)
        assert not self.withdrawn
        assert not any(job.is_late(self.now_ns) for job in self.running.values())

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.scheduler) == len(self.inside)
        assert {job.id for job in self.scheduler.running} == set(self.running)
        waiting = [(job.request.kind, job.request.segment.id) for job in self.inside.values()]
        droppable = [segment for kind, segment in waiting if kind is not RequestKind.FINAL]
        assert len(droppable) == len(set(droppable))
        for kind, limit in ((RequestKind.PARTIAL, 3), (RequestKind.EAGER, 2)):
            assert sum(k is kind for k, _ in waiting) <= limit


TestAnyOrder = AnyOrder.TestCase
