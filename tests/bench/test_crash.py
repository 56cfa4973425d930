"""The account of kills: what it finds, and a short run of the real thing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from voiced.bench.crash import CrashPlan, CrashRun
from voiced.bench.crash_ledger import Ledger, compare
from voiced.daemon.exit_status import exit_status


def final(
    segment: int, *, seq: int | None = None, text: str = "one", **more: Any
) -> dict[str, Any]:
    place = {"epoch": "e1", "seq": seq or segment}
    return {"type": "final", "segment": segment, "text": text, **place, **more}


def announced(*segments: int) -> Ledger:
    ledger = Ledger()
    for segment in segments:
        ledger.note({"type": "speech_ended", "segment": segment, "stream": "car"})
    return ledger


def test_three_accounts_that_agree_are_good() -> None:
    ledger = announced(1, 2, 3)
    ledger.note(final(1))
    failed = {"type": "failed", "segment": 3, "epoch": "e1", "seq": 3}
    journal = [final(1), final(2, recovered="e0"), failed]
    verdict = compare(ledger, journal, [final(1), final(2)])
    assert verdict.is_good
    assert (verdict.announced, verdict.finals, verdict.recovered, verdict.failed) == (3, 2, 1, 1)


def test_each_kind_of_loss_and_doubling_is_found() -> None:
    both = [final(1), final(2)]
    assert compare(announced(1, 2, 3), both, both).lost == (3,)
    twice = [final(1), final(2), final(1, seq=9)]
    assert compare(announced(1, 2), twice, twice).doubled == (1,)
    heard = announced(1, 2)
    for _ in range(2):
        heard.note(final(2))
    assert compare(heard, both, both).doubled == (2,)
    assert compare(announced(1, 1), both, both).reused == (1,)
    told = announced(1)
    told.note(final(1, text="two"))
    assert compare(told, both, both).untold == (1,)
    assert compare(announced(), both, [final(2)]).plugin_lost == 1
    assert compare(announced(), both, [*both, final(1)]).plugin_doubled == 1
    assert compare(announced(), both, [final(2), final(1)]).plugin_disordered == 1
    assert not compare(announced(), both, [final(2), final(1)]).is_good


def test_kills_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    plan = CrashPlan(kills=8, streams=3, seed=3, longest_pause_s=0.8)
    result = asyncio.run(CrashRun(plan, tmp_path).run())
    assert sum(result.kills.values()) == 8
    assert result.verdict.announced > 0
    assert result.verdict.is_good, result


def test_a_run_that_proves_nothing_is_a_failure() -> None:
    assert exit_status("crash_run") == 1
