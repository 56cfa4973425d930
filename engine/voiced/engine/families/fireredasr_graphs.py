"""FireRedASR's two graphs with their caches in host arrays.

They lend the memory of one gear at a time. A loan encodes utterances into its cross-attention keys
and values, and with a CTC head into log-probabilities, and hands them to the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np

from voiced.engine.buffers import BufferPool, Float, Lease
from voiced.engine.decode import MASKED, Decoder, DecoderShape, StepDecoder
from voiced.engine.families.fireredasr import FireRedModelInfo
from voiced.engine.families.whisper_graphs import cell_lengths
from voiced.engine.gears import GearSet
from voiced.engine.graphs import Graphs
from voiced.engine.types import Gear

SPECIALS = 1
"""Columns of the step graph's `specials`; nothing here reads them."""

MAX_AREA = 6000
"""Most feature frames, batch x gear, that the arenas are planned for: 250 MB of keys and values at
the released size, of which only what an utterance touches is ever real."""


class Loan(Protocol):
    """The memory of one gear."""

    gear: Gear

    def prefill(self, features: Sequence[Float]) -> None:
        """Encode utterances, each normalised float32[frames, mels], into the first rows."""
        ...

    def begin(self, n: int) -> Decoder:
        """Start to decode the first `n` rows."""
        ...

    def ctc(self, place: int) -> Float:
        """float32[encoder frames, vocabulary] of row `place`, padding left out; valid until the
        next `prefill`. Only where the model has a CTC head."""
        ...

    def sample(self) -> tuple[Float, Float]:
        """First layer's cross-attention keys and values as they lie, flat."""
        ...


class FireRedGraphs(Protocol):
    """The graphs of one bundle. One thread only."""

    gears: GearSet
    max_batch: int

    def lend(self, gear: Gear) -> AbstractContextManager[Loan]:
        """Lend the memory of a gear, until the end of the `with` block.

        Raises:
            LeaseError: Another gear is still lent.
        """
        ...


class HostGraphs:
    """Caches in host arrays that grow with the text; any batch of a gear's frames."""

    def __init__(
        self,
        graphs: Graphs,
        lengths: Sequence[int],
        info: FireRedModelInfo,
        *,
        pad: int,
        max_batch: int,
        max_beam: int,
    ) -> None:
        self.max_batch = max_batch
        self.info = info
        self.gears = GearSet(
            Gear(frames, batch)
            for frames in lengths
            for batch in range(1, max_batch + 1)
            if batch == 1 or batch * frames <= MAX_AREA
        )
        self._pool = BufferPool({g: self._shapes(g) for g in self.gears})
        self._prefill = graphs.session("prefill", {})
        most = min(info.encoder_frames(max(lengths)), info.decoder_positions)
        self._decoder = StepDecoder(
            graphs.session("step", {}),
            DecoderShape(info.decoder_layers, info.heads, info.d_head, SPECIALS, unseen=pad),
            cells=cell_lengths(max_beam, most),
            max_batch=max_batch,
            max_rows=max_beam,
        )

    @contextmanager
    def lend(self, gear: Gear) -> Iterator[Loan]:
        """Lend the memory of a gear."""
        with self._pool.lease(gear) as lease:
            yield _HostLoan(self, lease)

    def encode(self, lease: Lease, place: int, features: Float) -> int:
        """Encode one utterance into row `place` of the leased buffers; returns its frames.

        Utterances are encoded one by one: on a CPU a batch gains nothing in the encoder, and no
        utterance sees its neighbours.
        """
        info, frames = self.info, lease.gear.frames
        padded = np.zeros((1, info.input_frames(frames), info.mels), np.float32)
        padded[0, : len(features)] = features
        used = info.encoder_frames(len(features))
        mask = np.zeros((1, info.encoder_frames(frames)), np.float32)
        mask[0, :used] = 1
        lease["cross_mask"][place] = np.float32(MASKED) * (1 - mask)
        outputs = {
            name: lease[name][place : place + 1]
            for name in self._shapes(lease.gear)
            if name != "cross_mask"
        }
        self._prefill.bind({"features": padded, "mask": mask}, outputs).run()
        return used

    def begin(self, lease: Lease, n: int) -> Decoder:
        """Start to decode the first `n` rows of the leased buffers."""
        cross = {name: lease[name][:n] for name in self._shapes(lease.gear) if name != "ctc"}
        self._decoder.start(cross)
        return self._decoder

    def _shapes(self, gear: Gear) -> dict[str, tuple[int, ...]]:
        info, n = self.info, gear.batch
        places = info.encoder_frames(gear.frames)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(info.decoder_layers):
            shapes[f"cross_k_{layer}"] = (n, info.heads, info.d_head, places)
            shapes[f"cross_v_{layer}"] = (n, info.heads, places, info.d_head)
        shapes["cross_mask"] = (n, 1, 1, places)
        if info.has_ctc:
            shapes["ctc"] = (n, places, info.vocabulary)
        return shapes


class _HostLoan:
    def __init__(self, owner: HostGraphs, lease: Lease) -> None:
        self._owner, self._lease = owner, lease
        self._used: list[int] = []
        self.gear = lease.gear

    def prefill(self, features: Sequence[Float]) -> None:
        encode, lease = self._owner.encode, self._lease
        self._used = [encode(lease, place, each) for place, each in enumerate(features)]

    def begin(self, n: int) -> Decoder:
        return self._owner.begin(self._lease, n)

    def ctc(self, place: int) -> Float:
        return self._lease["ctc"][place, : self._used[place]]

    def sample(self) -> tuple[Float, Float]:
        return self._lease["cross_k_0"].reshape(-1), self._lease["cross_v_0"].reshape(-1)
