"""Whisper's two graphs with their memory: in host arrays, or resident on the device.

Both lend the memory of one gear at a time. A loan encodes utterances into its cross-attention
keys and values and hands them to the decoder; the search above sees no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from voiced.engine.backends.base import Call, DeviceTensor
from voiced.engine.buffers import BufferPool, Float, Lease
from voiced.engine.decode import Decoder, DecoderShape, StepDecoder
from voiced.engine.errors import LeaseError, StateLost
from voiced.engine.families.whisper import ResidentInfo, WhisperModelInfo, WhisperTailInfo
from voiced.engine.gears import GearSet
from voiced.engine.graphs import Graphs
from voiced.engine.resident import ResidentDecoder
from voiced.engine.slots import SlotDecoder
from voiced.engine.types import Gear

CELLS = (64, 128, 192, 256, 384, 512, 768)
"""Cache lengths of the host's decoder, before the one that holds the longest text."""

MAX_AREA = 3200
"""Most cross-attention positions of all utterances together (79 MB for Whisper base)."""

PROMPT = 4
"""Tokens before the text: start, language, task, no timestamps."""


class Loan(Protocol):
    """The memory of one gear."""

    gear: Gear

    def prefill(self, features: Sequence[Float]) -> None:
        """Encode utterances, each float32[1, mels, frames], into the first rows."""
        ...

    def begin(self, n: int) -> Decoder:
        """Start to decode the first `n` rows."""
        ...

    def sample(self) -> tuple[Float, Float]:
        """First layer's cross-attention keys and values as they lie, flat."""
        ...


class WhisperGraphs(Protocol):
    """The graphs of one bundle. One thread only."""

    gears: GearSet
    max_batch: int

    def lend(self, gear: Gear) -> AbstractContextManager[Loan]:
        """Lend the memory of a gear, until the end of the `with` block.

        Raises:
            LeaseError: Another gear is still lent.
        """
        ...


class Tail:
    """Keys and values of silence that stand behind a gear."""

    def __init__(self, root: Path, info: WhisperTailInfo, model: WhisperModelInfo) -> None:
        self.block = info.block
        shape = (len(info.names), model.encoder_positions // info.block, model.d_model)
        self._rows = np.memmap(root / info.file, np.float32, mode="r").reshape(shape)
        self._names = info.names

    def count(self, gear: Gear, frames: int) -> int:
        """Rows that stand for `frames` encoder frames, or as many as there are behind a gear."""
        return max(0, min(frames // self.block, self._rows.shape[1] - self._first(gear)))

    def behind(self, gear: Gear, count: int) -> dict[str, Float]:
        """Each graph input's float32[count, d]."""
        first = self._first(gear)
        rows = (row[first : first + count] for row in self._rows)
        return dict(zip(self._names, rows, strict=True))

    def mask(self, gear: Gear, count: int) -> Float:
        """What is added to the scores of a gear's own frames and of `count` rows behind."""
        mask = np.zeros(gear.frames // 2 + count, np.float32)
        mask[gear.frames // 2 :] = np.log(self.block)
        return mask

    def _first(self, gear: Gear) -> int:
        """First block that lies behind the gear as a whole."""
        return -(-(gear.frames // 2) // self.block)


class HostGraphs:
    """Caches in host arrays that grow with the text.

    One utterance is lent to at a time; several are decoded in `slots`.
    """

    def __init__(
        self,
        graphs: Graphs,
        lengths: Sequence[int],
        info: WhisperModelInfo,
        tail: Tail,
        *,
        ids: Sequence[int],
        specials: int,
        tail_frames: Callable[[Gear], int],
        max_batch: int,
        max_beam: int,
    ) -> None:
        self.max_batch = max_batch
        self.gears = GearSet(Gear(frames) for frames in lengths)
        self._info = info
        self._tail = tail
        self._tail_frames = tail_frames
        self._pool = BufferPool({g: self._cross_shapes(g) for g in self.gears})
        self._prefill = graphs.session("prefill", {})
        self._mel = np.zeros(info.mels * self.gears.max_frames, np.float32)
        self._encoders: dict[tuple[Gear, int], tuple[Float, Call]] = {}
        """By gear and row of its buffers: where the features go, and what encodes them."""
        step = graphs.session("step", {})
        shape = DecoderShape(info.decoder_layers, info.heads, info.d_head, specials, packed=True)
        cells = cell_lengths(max_beam, info.decoder_positions // 2)
        self._decoder = StepDecoder(
            step,
            shape,
            cells=cells,
            max_batch=1,
            max_rows=max(PROMPT, max_beam),
        )
        self.slots = SlotDecoder(
            step,
            shape,
            cells=cells,
            ids=ids,
            max_batch=max_batch,
            max_rows=max_beam,
            positions=MAX_AREA,
        )
        """Where several utterances are decoded; they join from a loan of one."""

    @contextmanager
    def lend(self, gear: Gear) -> Iterator[Loan]:
        """Lend the memory of a gear."""
        with self._pool.lease(gear) as lease:
            yield _HostLoan(self, lease)

    def encode(self, lease: Lease, place: int, features: Float) -> None:
        """Encode one utterance into row `place` of the leased buffers.

        Utterances are encoded one by one: the encoder is compute-bound, a batch gains nothing on
        a CPU (facts: 58-61 ms a segment at any batch), and no utterance sees its neighbours.
        """
        key = (lease.gear, place)
        if key not in self._encoders:
            self._encoders[key] = self._encoder(lease, place)
        mel, call = self._encoders[key]
        mel[:] = features
        call.run()

    def _encoder(self, lease: Lease, place: int) -> tuple[Float, Call]:
        gear, count = lease.gear, self._rows_behind(lease.gear)
        mel = self._mel[: self._info.mels * gear.frames].reshape(1, self._info.mels, gear.frames)
        inputs = {"mel": mel, **self._tail.behind(gear, count)}
        inputs["span_mask"] = self._tail.mask(gear, count)[None, None, None]
        outputs = {name: lease[name][place : place + 1] for name in self._cross_shapes(gear)}
        return mel, self._prefill.bind(inputs, outputs)

    def begin(self, lease: Lease, n: int) -> StepDecoder:
        """Start to decode the first `n` rows of the leased buffers."""
        gear = lease.gear
        cross = {name: lease[name][:n] for name in self._cross_shapes(gear)}
        cross["cross_mask"] = self._tail.mask(gear, self._rows_behind(gear))[None, None, None]
        self._decoder.start(cross)
        return self._decoder

    def span(self, gear: Gear) -> int:
        """Cross-attention positions of an utterance at this gear."""
        return gear.frames // 2 + self._rows_behind(gear)

    def _rows_behind(self, gear: Gear) -> int:
        return self._tail.count(gear, self._tail_frames(gear))

    def _cross_shapes(self, gear: Gear) -> dict[str, tuple[int, ...]]:
        info = self._info
        places = self.span(gear)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(info.decoder_layers):
            shapes[f"cross_k_{layer}"] = (gear.batch, info.heads, places, info.d_head)
            shapes[f"cross_v_{layer}"] = (gear.batch, info.heads, info.d_head, places)
        return shapes


class _HostLoan:
    def __init__(self, owner: HostGraphs, lease: Lease) -> None:
        self._owner, self._lease = owner, lease
        self.gear = lease.gear

    def prefill(self, features: Sequence[Float]) -> None:
        for place, each in enumerate(features):
            self._owner.encode(self._lease, place, each)

    def begin(self, n: int) -> StepDecoder:
        return self._owner.begin(self._lease, n)

    def sample(self) -> tuple[Float, Float]:
        return self._lease["cross_k_0"].reshape(-1), self._lease["cross_v_0"].reshape(-1)


class ResidentGraphs:
    """Caches on the device, at exactly the gears of the bundle.

    A gear's tensors are allocated and bound when it is first lent, and stay. Gears of one span
    share the cross-attention tensors, which the prefill graph writes and the step graph reads.
    """

    def __init__(
        self,
        graphs: Graphs,
        gears: Sequence[Gear],
        info: WhisperModelInfo,
        resident: ResidentInfo,
        tail: Tail,
        places: Float,
        *,
        specials: int,
        tail_frames: Callable[[Gear], int],
        max_batch: int,
    ) -> None:
        self.gears = GearSet(g for g in gears if g.batch <= max_batch)
        self.max_batch = max(g.batch for g in self.gears)
        self._graphs = graphs
        self._info = info
        self._tail = tail
        self._places = places
        self._tail_frames = tail_frames
        self._dtype = np.dtype(resident.dtype)
        self._decoder = ResidentDecoder(
            lambda axes: graphs.session("step", axes),
            DecoderShape(info.decoder_layers, info.heads, info.d_head, specials),
            rows=resident.rows,
            cells={span.positions: span.cells for span in resident.spans},
            dtype=self._dtype,
        )
        self._cross: dict[tuple[int, int], dict[str, DeviceTensor]] = {}
        self._bound: dict[Gear, _BoundPrefill] = {}
        self._lent: Gear | None = None

    @contextmanager
    def lend(self, gear: Gear) -> Iterator[Loan]:
        """Lend the memory of a gear."""
        if self._lent is not None:
            raise LeaseError(f"memory is still lent to gear {self._lent}")
        self._lent = gear
        try:
            if gear not in self._bound:
                self._bound[gear] = self._bind(gear)
            yield _ResidentLoan(gear, self._bound[gear], self._decoder)
        except StateLost:
            for bound in self._bound.values():
                bound.is_filled = False
            raise
        finally:
            self._lent = None

    def _bind(self, gear: Gear) -> _BoundPrefill:
        length = self._tail_frames(gear)
        positions = gear.frames // 2
        span = positions + length
        d = self._info.d_model
        axes = {"N": gear.batch, "2T": gear.frames, "T": positions, "P": length, "S": span}
        session = self._graphs.session("prefill", axes)
        key = (gear.batch, span)
        if key not in self._cross:
            self._cross[key] = {
                f"cross_{letter}_{layer}": session.allocate((gear.batch, d, span), self._dtype)
                for layer in range(self._info.decoder_layers)
                for letter in "kv"
            }
        constants = {"places": self._places[:positions]}
        for name, rows in self._tail.behind(gear, length).items():
            constants[name] = np.broadcast_to(rows, (gear.batch, *rows.shape))
        tensors = {name: session.allocate(a.shape, self._dtype) for name, a in constants.items()}
        mel = np.zeros((gear.batch, self._info.mels, gear.frames), np.float32)
        call = session.bind({"mel": mel, **tensors}, self._cross[key])

        def fill() -> None:
            for name, tensor in tensors.items():
                tensor.write(np.ascontiguousarray(constants[name], self._dtype))

        return _BoundPrefill(mel, call, self._cross[key], fill)


class _BoundPrefill:
    """The prefill graph at one gear: its staging array, its call, and what it writes."""

    def __init__(
        self, mel: Float, call: Call, cross: dict[str, DeviceTensor], fill: Callable[[], None]
    ) -> None:
        self.mel = mel
        self.call = call
        self.cross = cross
        self.is_filled = False
        """Whether position encodings and tail are on the device; no longer after a `StateLost`."""
        self._fill = fill

    def run(self) -> None:
        if not self.is_filled:
            self._fill()
            self.is_filled = True
        self.call.run()


class _ResidentLoan:
    def __init__(self, gear: Gear, bound: _BoundPrefill, decoder: ResidentDecoder) -> None:
        self.gear = gear
        self._bound, self._decoder = bound, decoder

    def prefill(self, features: Sequence[Float]) -> None:
        for place, each in enumerate(features):
            self._bound.mel[place] = each[0]
        self._bound.run()

    def begin(self, n: int) -> Decoder:
        self._decoder.start(self._bound.cross, n)
        return self._decoder

    def sample(self) -> tuple[Float, Float]:
        k, v = (self._bound.cross[f"cross_{letter}_0"].read() for letter in "kv")
        return k.reshape(-1).astype(np.float32), v.reshape(-1).astype(np.float32)


def cell_lengths(beam: int, tokens: int) -> tuple[int, ...]:
    """Cache lengths for texts of at most `tokens` tokens in `beam` rows that share nothing."""
    longest = 4 + beam * (tokens + 4)  # the prompt; room for a few steps after a compaction
    longest = -(-longest // 64) * 64  # as all others: sums over a longer cache add up alike
    return (*(c for c in CELLS if c < longest), longest)
