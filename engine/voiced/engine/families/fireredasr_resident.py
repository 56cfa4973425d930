"""FireRedASR's two graphs with their caches on the device, at exactly the gears of the bundle.

A gear's tensors are allocated and bound when it is first lent, and stay: cross-attention keys and
values, and their mask, which the prefill graph writes and the step graph reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from voiced.engine.backends.base import Bindable, DeviceTensor, Session
from voiced.engine.buffers import Float
from voiced.engine.decode import Decoder, DecoderShape
from voiced.engine.errors import LeaseError, StateLost
from voiced.engine.families.fireredasr import FireRedModelInfo
from voiced.engine.families.fireredasr_graphs import SPECIALS, Loan
from voiced.engine.families.whisper import ResidentInfo
from voiced.engine.gears import GearSet
from voiced.engine.graphs import Graphs
from voiced.engine.resident import ResidentDecoder
from voiced.engine.types import Gear


class ResidentGraphs:
    """Caches on the device. One thread only."""

    def __init__(
        self,
        graphs: Graphs,
        gears: Sequence[Gear],
        info: FireRedModelInfo,
        resident: ResidentInfo,
        places: Float,
        *,
        pad: int,
        max_batch: int,
    ) -> None:
        self.gears = GearSet(g for g in gears if g.batch <= max_batch)
        self.max_batch = max(g.batch for g in self.gears)
        self._graphs = graphs
        self._info = info
        self._dtype = np.dtype(resident.dtype)
        self._places = places
        self._decoder = ResidentDecoder(
            lambda axes: graphs.session("step", axes),
            # a stacked cache is that of one layer with all heads
            DecoderShape(
                info.tensors,
                info.heads * info.decoder_layers // info.tensors,
                info.d_head,
                SPECIALS,
                unseen=pad,
            ),
            rows=resident.rows,
            cells={span.positions: span.cells for span in resident.spans},
            dtype=self._dtype,
        )
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
        frames = self._info.encoder_frames(gear.frames)
        axes = {
            "N": gear.batch,
            "T": frames,
            "2T": 2 * frames,
            "L": self._info.input_frames(gear.frames),
        }
        session = self._graphs.session("prefill", axes)
        centre = len(self._places) // 2
        places = self._places[centre - frames : centre + frames].astype(self._dtype)
        return _BoundPrefill(session, gear, self._info, places)


class _BoundPrefill:
    """The prefill graph at one gear: its staging arrays, its call, and what it writes."""

    def __init__(self, session: Session, gear: Gear, info: FireRedModelInfo, places: Float) -> None:
        n, frames = gear.batch, info.encoder_frames(gear.frames)
        rows = info.d_model * info.decoder_layers // info.tensors
        self._info = info
        self._places = np.ascontiguousarray(places)
        self._resident = session.allocate(places.shape, places.dtype)
        self.is_filled = False
        """Whether the position encodings are on the device; no longer after a `StateLost`."""
        self.features = np.zeros((n, info.input_frames(gear.frames), info.mels), np.float32)
        self.mask = np.zeros((n, frames), np.float32)
        self.cross: dict[str, DeviceTensor] = {
            f"cross_{letter}_{layer}": session.allocate((n, rows, frames), places.dtype)
            for layer in range(info.tensors)
            for letter in "kv"
        }
        self.cross["cross_mask"] = session.allocate((n, 1, frames), places.dtype)
        outputs: dict[str, DeviceTensor] = dict(self.cross)
        if info.has_ctc:
            # on the device too: whoever wants it asks for it
            outputs["ctc"] = session.allocate((n, frames, info.vocabulary), np.float32)
        self.ctc = outputs.get("ctc")
        staged: dict[str, Bindable] = {"features": self.features, "mask": self.mask}
        self._call = session.bind({**staged, "places": self._resident}, outputs)

    def run(self, features: Sequence[Float]) -> list[int]:
        """Encode utterances into the first rows; returns the encoder frames of each."""
        if not self.is_filled:
            self._resident.write(self._places)
            self.is_filled = True
        self.features.fill(0)
        self.mask.fill(0)
        used = [self._info.encoder_frames(len(each)) for each in features]
        for place, (each, frames) in enumerate(zip(features, used, strict=True)):
            self.features[place, : len(each)] = each
            self.mask[place, :frames] = 1
        self._call.run()
        return used


class _ResidentLoan:
    def __init__(self, gear: Gear, bound: _BoundPrefill, decoder: ResidentDecoder) -> None:
        self.gear = gear
        self._bound, self._decoder = bound, decoder
        self._used: list[int] = []
        self._ctc: Float | None = None

    def prefill(self, features: Sequence[Float]) -> None:
        self._used = self._bound.run(features)
        self._ctc = None

    def begin(self, n: int) -> Decoder:
        self._decoder.start(self._bound.cross, n)
        return self._decoder

    def ctc(self, place: int) -> Float:
        if self._ctc is None:
            assert self._bound.ctc is not None
            self._ctc = self._bound.ctc.read()
        return self._ctc[place, : self._used[place]]

    def sample(self) -> tuple[Float, Float]:
        k, v = (self._bound.cross[f"cross_{letter}_0"].read() for letter in "kv")
        return k.reshape(-1).astype(np.float32), v.reshape(-1).astype(np.float32)
