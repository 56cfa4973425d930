"""`voiced bench crash`: kills at random, and what they cost."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from voiced.bench.crash import CrashPlan, CrashResult, CrashRun
from voiced.daemon.exit_status import EXIT_FAILED, EXIT_OK


def crash(plan: CrashPlan, *, folder: Path | None, json_path: Path | None) -> int:
    """Run, print the account, return 0 when nothing was lost or doubled.

    Raises:
        CrashRunFailed: It could not be brought to its end.
        OSError: The folder or the file cannot be written.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=False)
        result = asyncio.run(CrashRun(plan, folder).run(_tell))
    else:
        with tempfile.TemporaryDirectory(prefix="voiced-crash-") as made:
            result = asyncio.run(CrashRun(plan, Path(made)).run(_tell))
    print(report(result))
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return EXIT_OK if result.verdict.is_good else EXIT_FAILED


def report(result: CrashResult) -> str:
    """Write the account for people."""
    verdict = result.verdict
    killed = ", ".join(f"{count} of the {name}" for name, count in sorted(result.kills.items()))
    done = sum(result.kills.values())
    asked = "" if done == result.asked else f" of {result.asked}: the time was over"
    return "\n".join(
        [
            f"{done} kills{asked} ({killed}) in {result.duration_s:.0f} s",
            f"segments announced {verdict.announced}, finals {verdict.finals} "
            f"(recovered {verdict.recovered}), failed {verdict.failed}",
            f"finals lost {len(verdict.lost)}, doubled {len(verdict.doubled)}, "
            f"ids used twice {len(verdict.reused)}, at a client only {len(verdict.untold)}",
            f"plugin's file: lost {verdict.plugin_lost}, doubled {verdict.plugin_doubled}, "
            f"out of order {verdict.plugin_disordered}",
        ]
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
