"""The one line that `systemctl status` shows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voiced.engine.types import EngineLoad

if TYPE_CHECKING:
    from voiced.daemon.microphone import MicrophoneStatus


def status_line(
    *,
    streams: int,
    max_streams: int,
    load: EngineLoad,
    bundle: str,
    reason: str,
    microphone: MicrophoneStatus | None,
) -> str:
    """Say how many streams there are, what waits, and how engine and microphone are.

    Args:
        streams: Open ones.
        max_streams: Most that may be open.
        load: The engine's queue.
        bundle: The model.
        reason: Why the engine answers nothing now; empty when it does.
        microphone: None where it is not enabled.
    """
    parts = [f"{streams} of {max_streams} streams"]
    if load.queued_finals:
        parts.append(f"{load.queued_finals} finals wait, {load.oldest_final_age_s:.0f} s at most")
    else:
        parts.append("nothing waits")
    parts.append(f"engine not ready: {reason}" if reason else f"engine ready, {bundle}")
    if load.totals.restarts:
        parts.append(f"{load.totals.restarts} engine restarts")
    if microphone is not None:
        state = microphone.state.value
        parts.append(f"microphone {state}" + (f": {microphone.code}" if microphone.code else ""))
    return "; ".join(parts)
