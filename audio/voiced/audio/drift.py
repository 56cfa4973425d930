"""How fast a sound device's clock runs against this machine's. Pure."""

from __future__ import annotations

from collections import deque

_WINDOW_NS = 5_000_000_000
_KEPT = 120
"""Windows looked at: the last ten minutes."""
_LEAST = 6
"""Windows before a figure is given: within half a minute, waiting for the CPU looks like drift."""


class DriftMeter:
    """Compares counted frames with the monotonic times at which they arrived.

    A block arrives late, never early: the least lateness of each window of 5 s is what the two
    clocks say, free of scheduling. The slope of these (least squares, over ten minutes at most) is
    the drift.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._start_ns: int | None = None
        self._window_end_ns = 0
        self._least: tuple[int, int] | None = None
        self._points: deque[tuple[int, int]] = deque(maxlen=_KEPT)

    def note(self, end_frame: int, arrived_ns: int) -> bool:
        """Take a block that ends at `end_frame`, counted from the opening of the capture.

        Returns:
            Whether a window is complete, and `ppm` may be another.
        """
        nominal_ns = end_frame * 1_000_000_000 // self._rate_hz
        if self._start_ns is None:
            self._start_ns = arrived_ns - nominal_ns
            self._window_end_ns = arrived_ns + _WINDOW_NS
        point = (nominal_ns, arrived_ns - self._start_ns - nominal_ns)
        is_complete = arrived_ns >= self._window_end_ns
        if is_complete and self._least is not None:
            self._points.append(self._least)
            self._least = None
            self._window_end_ns = arrived_ns + _WINDOW_NS
        if self._least is None or point[1] < self._least[1]:
            self._least = point
        return is_complete

    @property
    def ppm(self) -> float | None:
        """Millionths by which the device's clock is faster than this machine's; None: too early."""
        count = len(self._points)
        if count < _LEAST:
            return None
        mean_x = sum(x for x, _ in self._points) / count
        mean_y = sum(y for _, y in self._points) / count
        square = sum((x - mean_x) ** 2 for x, _ in self._points)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in self._points) / square
        return -slope * 1e6
