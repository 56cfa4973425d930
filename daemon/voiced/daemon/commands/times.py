"""Times as people write them on the command line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime

from voiced.daemon.errors import TimeError

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def since_ms(text: str, *, now_s: Callable[[], float] = time.time) -> int:
    """Turn `90s`, `15m`, `2h`, `7d` (ago), `all`, or an ISO date into Unix milliseconds.

    A date without an offset is in this machine's time zone.

    Raises:
        TimeError: It is none of these.
    """
    if text == "all":
        return 0
    if ago := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text):
        return max(0, round(now_s() * 1000 - float(ago[1]) * _UNITS_MS[ago[2]]))
    try:
        return max(0, round(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise TimeError(text) from None
