from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.split import split_quietly


@given(st.integers(0, 60_000), st.integers(3_000, 20_000), st.integers(0, 5))
def test_pieces_meet_without_loss_and_fit(samples: int, longest: int, seed: int) -> None:
    pcm = np.random.default_rng(seed).integers(-3000, 3000, samples).astype(np.int16)
    pieces = split_quietly(pcm, longest)
    assert np.array_equal(np.concatenate(pieces), pcm)
    assert all(0 < len(piece) <= longest for piece in pieces[:-1])
    assert len(pieces[-1]) <= longest


def test_the_cut_lies_in_the_pause() -> None:
    pcm = np.random.default_rng(0).integers(-3000, 3000, 30_000).astype(np.int16)
    pcm[15_000:17_000] = 0
    first, *_ = split_quietly(pcm, 20_000)
    assert 15_000 < len(first) < 17_000
