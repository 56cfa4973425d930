"""What was heard can be read back, as int16, whenever it was asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.history import PcmHistory
from voiced.audio.pcm import float_to_int16

steps = st.lists(
    st.tuples(st.integers(1, 9_000), st.integers(0, 20_000), st.booleans()), min_size=1, max_size=30
)


@given(steps=steps, seed=st.integers(0, 99))
def test_what_is_kept_is_read_as_it_came_however_often_and_late(
    steps: list[tuple[int, int, bool]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    history, heard, keep_from = PcmHistory(), np.empty(0, np.float32), 0
    for length, kept, is_read in steps:
        block = rng.uniform(-1, 1, length).astype(np.float32)
        heard = np.concatenate((heard, block))
        history.append(block, keep_from=keep_from)
        assert history.end_sample == len(heard)
        assert history.start_sample <= keep_from
        if is_read:
            read = history.read(keep_from, len(heard))
            assert np.array_equal(read, float_to_int16(heard[keep_from:]))
        keep_from = max(keep_from, len(heard) - kept)


def test_what_nobody_reads_is_forgotten_as_it_came() -> None:
    history = PcmHistory()
    for end in range(3_200, 320_000, 3_200):
        history.append(np.zeros(3_200, np.float32), keep_from=end - 8_000)
    assert history.held_bytes < 4 * 16_000
    assert history.end_sample - 8_000 - 3_200 <= history.start_sample <= history.end_sample - 8_000
