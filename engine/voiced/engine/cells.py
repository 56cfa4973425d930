"""Memory of a decoder: self-attention cells and cross-attention spans of utterances in slots.

An utterance's slot is one stretch of each array, so that the utterances in use are always the
first ones: a new one is appended, and where one leaves, the last takes its place. Nothing is
allocated after the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]

MASKED = -1e4
"""Additive mask: zero after softmax, still finite in float16."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of the step graph's caches."""

    layers: int
    heads: int
    d_head: int
    specials: int
    packed: bool = False
    """The graph computes live rows only (`build/whisper_step.py`), and takes `cross_mask`."""
    unseen: int = -1
    """A token that no row sees, not even its own; -1 for none."""

    def seen(self, tokens: npt.NDArray[np.int32], *, causal: bool) -> Bool:
        """Which tokens of one step each row sees and descends from, bool[n, B, B].

        Args:
            tokens: int32[n, B].
            causal: The B tokens follow each other; otherwise they are alternatives.
        """
        count = tokens.shape[1]
        own = np.tri(count, dtype=np.bool_) if causal else np.eye(count, dtype=np.bool_)
        seen: Bool = own & (tokens != self.unseen)[:, None]
        return seen

    @property
    def cell_floats(self) -> int:
        """Floats of one cell in one layer's keys (or values)."""
        return self.heads * self.d_head

    def view(self, flat: Float, n: int, length: int, *, turned: bool) -> Float:
        """The first `n` slots of `length` cells: [n, H, length, dk], turned [n, H, dk, length]."""
        last = (self.d_head, length) if turned else (length, self.d_head)
        return flat[: n * length * self.cell_floats].reshape(n, self.heads, *last)


class CellCache:
    """Self-attention keys and values, one cell per (step, row) of an utterance, never reordered.

    `ancestors` bool[n, rows, size] marks, per live row, the cells of its own history. When an
    utterance's cells run out, those that none of its live rows descends from are dropped; live
    rows of a beam share nearly all of their history, so that a beam of 5 needs few more cells than
    one row would.

    Each utterance has its own pointer and its own length, whatever its neighbours have: its cells
    lie where they would lie if it were alone, and so its sums are added up in the same order.
    """

    def __init__(self, shape: DecoderShape, cells: Sequence[int], *, max_batch: int) -> None:
        self._shape = shape
        self._cells = tuple(cells)
        floats = max_batch * self._cells[-1] * shape.cell_floats
        # pages of the cache that short utterances never reach are never touched
        self._flat = {
            f"{kv}_{i}": np.zeros(floats, np.float32) for kv in "kv" for i in range(shape.layers)
        }
        self.nbytes = sum(a.nbytes for a in self._flat.values())
        self._shaped: dict[tuple[int, int], dict[str, Float]] = {}
        self.clear(0)

    def clear(self, n: int) -> None:
        """Begin with `n` utterances that have no cells yet."""
        self.used = [0] * n
        """Cells written by each utterance since its start or its last compaction."""
        self._sizes = [self._cells[0]] * n
        self.size = self._cells[0]
        """Cells of each slot, the longest utterance's."""
        self.ancestors: Bool = np.zeros((n, 1, self.size), np.bool_)

    @property
    def n(self) -> int:
        """Utterances inside."""
        return len(self.used)

    def views(self) -> dict[str, Float]:
        """The graph's inputs `self_k_<layer>` and `self_v_<layer>`."""
        return {f"self_{name}": view for name, view in self._views().items()}

    def _views(self) -> dict[str, Float]:
        """`k_<layer>` and `v_<layer>` of all slots; made once for each number and size of them."""
        key = (self.n, self.size)
        if key not in self._shaped:
            self._shaped[key] = {
                name: self._shape.view(flat, *key, turned=name.startswith("k"))
                for name, flat in self._flat.items()
            }
        return self._shaped[key]

    def make_room(self, rows: Sequence[int]) -> None:
        """Let each utterance have so many rows, and room for a cell for each of them."""
        have, most = self.ancestors.shape[1], max(rows)
        if have == 1 < most:  # one history, continued by several rows
            self.ancestors = self.ancestors.repeat(most, axis=1)
        elif have < most:
            self.ancestors = np.pad(self.ancestors, ((0, 0), (0, most - have), (0, 0)))
        else:
            self.ancestors = self.ancestors[:, :most]
        kept: dict[int, Index] = {}
        sizes = list(self._sizes)
        for slot, count in enumerate(rows):
            if self.used[slot] + count > sizes[slot]:
                kept[slot] = np.flatnonzero(self.ancestors[slot].any(axis=0))
                # a few steps must fit, else compaction would run on every step
                sizes[slot] = self._length(len(kept[slot]) + 4 * count)
        if kept:
            self._move(kept, sizes)

    def _length(self, cells: int) -> int:
        return next((c for c in self._cells if c >= cells), self._cells[-1])

    def write(self, new: Mapping[str, Float], own: Bool, rows: Sequence[int]) -> None:
        """Keep one step's cells.

        Args:
            new: `new_k_<layer>` float32[n, H, dk, B] and `new_v_<layer>` [n, H, B, dk].
            own: bool[n, B, B], which of the new cells each row descends from.
            rows: How many of the B rows each utterance has, its first.
        """
        whole = len({*self.used}) == 1 and len({*rows}) == 1
        slots: Sequence[slice] = [slice(i, i + 1) for i in range(self.n)]
        pairs = [(name[0] == "k", view, new[f"new_{name}"]) for name, view in self._views().items()]
        for at in (slice(0, self.n),) if whole else slots:
            used, count = self.used[at][0], rows[at][0]
            place = slice(used, used + count)
            for is_key, cells, fresh in pairs:
                if is_key:
                    cells[at, ..., place] = fresh[at, ..., :count]
                else:
                    cells[at, :, place] = fresh[at, :, :count]
            self.ancestors[at, :count, place] = own[at, :count, :count]
        self.used = [used + count for used, count in zip(self.used, rows, strict=True)]

    def follow(self, parents: npt.ArrayLike) -> None:
        """Choose the rows of the next step: int[n, rows], what each continues; -1 for no row."""
        index = np.asarray(parents, np.int64)
        taken = self.ancestors[np.arange(len(index))[:, None], np.maximum(index, 0)]  # a copy
        taken[index < 0] = False
        self.ancestors = taken

    def adopt(self, other: CellCache, rows: int) -> None:
        """Append the only utterance of another cache, its first row continued by `rows` rows."""
        used = other.used[0]
        if self.n == 0:
            self.clear(0)
        if other.size > self.size:
            self._move({}, self._sizes, at_least=other.size)
        old, width = self.ancestors, self.ancestors.shape[1] if self.n else 0
        self.used.append(used)
        self._sizes.append(other._sizes[0])
        theirs = other._views()
        for name, view in self._views().items():
            source, place = theirs[name][0], view[-1]
            if name.startswith("k"):
                place[..., :used] = source[..., :used]
            else:
                place[:, :used] = source[:, :used]
        self.ancestors = np.zeros((self.n, max(width, rows), self.size), np.bool_)
        self.ancestors[:-1, :width] = old[:, :width]
        self.ancestors[-1, :rows, :used] = other.ancestors[0, 0, :used]

    def remove(self, slot: int) -> None:
        """Take an utterance out; the last one moves into its slot."""
        last = self.n - 1
        if slot != last:
            for view in self._views().values():
                view[slot] = view[last]
            self.ancestors[slot] = self.ancestors[last]
            self.used[slot], self._sizes[slot] = self.used[last], self._sizes[last]
        self.ancestors = self.ancestors[:last]
        del self.used[last], self._sizes[last]

    def _move(self, kept: Mapping[int, Index], sizes: Sequence[int], at_least: int = 0) -> None:
        """Drop all cells of some utterances but those `kept`, and give each its new length."""
        before, size = self.size, max(*sizes, at_least)
        moved = range(self.n) if size != before else sorted(kept)
        cells = {slot: kept.get(slot, np.arange(self.used[slot])) for slot in moved}
        ancestors = np.zeros((self.n, self.ancestors.shape[1], size), np.bool_)
        if size == before:
            ancestors[:] = self.ancestors
        for slot, index in cells.items():
            ancestors[slot] = False
            ancestors[slot, :, : len(index)] = self.ancestors[slot][:, index]
        for name, flat in self._flat.items():
            keys = name.startswith("k")
            old = self._shape.view(flat, self.n, before, turned=keys)
            new = self._shape.view(flat, self.n, size, turned=keys)
            if keys:
                saved = {slot: old[slot][..., index] for slot, index in cells.items()}  # copies
                for slot, part in saved.items():
                    new[slot][..., : part.shape[-1]] = part
            else:
                saved = {slot: old[slot][:, index] for slot, index in cells.items()}
                for slot, part in saved.items():
                    new[slot][:, : part.shape[1]] = part
        for slot, index in kept.items():
            self.used[slot] = len(index)
        self.ancestors, self.size, self._sizes = ancestors, size, list(sizes)


class SpanCache:
    """Cross-attention keys and values of utterances that differ in length, padded to the longest.

    What is padded is masked: `mask` float32[n, 1, 1, span]. Here the values are turned and not the
    keys, see `build/whisper_step.py`.
    """

    def __init__(self, shape: DecoderShape, *, max_batch: int, positions: int) -> None:
        self._shape = shape
        self._max_batch = max_batch
        self._positions = positions
        self._flat = {
            f"cross_{kv}_{i}": np.zeros(positions * shape.cell_floats, np.float32)
            for i in range(shape.layers)
            for kv in "kv"
        }
        self.nbytes = sum(a.nbytes for a in self._flat.values())
        self._masks: list[Float] = []
        self._whole: Float | None = None
        self.span = 0
        """Positions of each slot, padding included."""

    @property
    def n(self) -> int:
        """Utterances inside."""
        return len(self._masks)

    @property
    def place(self) -> tuple[int, ...]:
        """Where the arrays lie: each begins where it always did."""
        return self.n, self.span

    @property
    def padding(self) -> int:
        """Positions, of all slots together, that hold nothing."""
        return self.n * self.span - sum(len(mask) for mask in self._masks)

    def holds(self, length: int) -> bool:
        """Whether one more utterance of `length` positions fits beside those inside."""
        return self.n < self._max_batch and (
            (self.n + 1) * max(self.span if self.n else 0, length) <= self._positions
        )

    def views(self) -> dict[str, Float]:
        """The graph's inputs `cross_k_<layer>` and `cross_v_<layer>`."""
        return {name: self._view(name, self.n, self.span) for name in self._flat}

    def mask(self) -> Float:
        """The graph's input `cross_mask`, float32[n, 1, 1, span]."""
        if self._whole is None:
            self._whole = np.full((self.n, 1, 1, self.span), MASKED, np.float32)
            for row, mask in zip(self._whole, self._masks, strict=True):
                row[0, 0, : len(mask)] = mask
        return self._whole

    def append(self, cross: Mapping[str, Float], mask: Float) -> None:
        """Add an utterance of S positions.

        Args:
            cross: `cross_k_<layer>` float32[1, H, S, dk] and `cross_v_<layer>` [1, H, dk, S].
            mask: float32[S].
        """
        length = len(mask)
        if self.n == 0:
            self.span = length
        elif length > self.span:
            self._resize(length)
        self._masks.append(mask)
        self._whole = None
        for name in self._flat:
            place = self._view(name, self.n, self.span)[-1]
            if name.startswith("cross_v"):
                place[..., :length] = cross[name][0]
            else:
                place[:, :length] = cross[name][0]

    def remove(self, slot: int) -> None:
        """Take an utterance out; the last one moves into its slot."""
        last = self.n - 1
        if slot != last:
            for name in self._flat:
                view = self._view(name, self.n, self.span)
                view[slot] = view[last]
            self._masks[slot] = self._masks[last]
        del self._masks[last]
        self._whole = None
        longest = max((len(mask) for mask in self._masks), default=0)
        if longest and longest <= 0.75 * self.span:  # padding costs every step, moving once
            self._resize(longest)

    def _resize(self, span: int) -> None:
        shared = min(span, self.span)
        order = range(self.n) if span < self.span else reversed(range(self.n))
        for slot in order:
            for name in self._flat:
                old = self._view(name, self.n, self.span)[slot]
                new = self._view(name, self.n, span)[slot]
                if name.startswith("cross_v"):
                    new[..., :shared] = old[..., :shared].copy()
                else:
                    new[:, :shared] = old[:, :shared].copy()
        self.span = span

    def _view(self, name: str, n: int, span: int) -> Float:
        return self._shape.view(self._flat[name], n, span, turned=name.startswith("cross_v"))
