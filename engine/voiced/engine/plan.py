"""What a model costs on a chip, and which gears an artifact should have. Pure arithmetic.

A roofline: an operation takes the longer of its arithmetic at the chip's peak and its memory
traffic at the chip's bandwidth. Real times are longer; `launch_s` is the one overhead that can be
told in advance. Nothing here was measured on a card.

Formulas: operation counts of the FireRedASR-AED and Whisper graphs, checked against parameter
counts of the released checkpoints. T is the number of encoder frames of a padded row, d the width.
Published figures of the chips contradict each other (fp16 256 to 320 TFLOP/s, 0.4 to 1.2 TB/s for
910B), so the table names what was assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from voiced.engine.errors import EngineError

MAX_GEARS = 100
"""Gears of one artifact; more dimensions to it than 3 or 4 are not recommended by the vendor."""
FITTING_SHARE = 0.9
"""Part of the memory that may be planned for; the rest is the runtime's and fragmentation."""
SCORE_COPIES = 4
"""Copies of one layer's attention scores that are alive together (products, bias, softmax)."""
_UPDATE_FORMS = {"append": 1, "blend": 2}
"""How a step writes its cache → times that it passes over it: read, or read and written."""


class PlanError(EngineError):
    """The plan cannot be made from what was given."""

    code = "plan"


@dataclass(frozen=True, slots=True)
class Chip:
    """One device."""

    name: str
    flops: float
    """Peak of dense arithmetic in the type below, per second."""
    bytes_per_s: float
    memory_bytes: float
    value_bytes: int
    """Bytes of a weight or activation."""
    launch_s: float
    """Time to start one operator. An estimate."""
    text: str


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("910B4", 280e12, 0.8e12, 32e9, 2, 0.8e-6, "280 TFLOP/s fp16, 0.8 TB/s, 32 GB assumed"),
        Chip("910B", 280e12, 1.6e12, 64e9, 2, 0.8e-6, "280 TFLOP/s fp16, 1.6 TB/s, 64 GB assumed"),
        Chip("310P", 70e12, 0.204e12, 48e9, 2, 0.8e-6, "one of a 300I Duo: 70 TFLOP/s, 0.204 TB/s"),
        Chip("cpu", 150e9, 25e9, 16e9, 4, 0.0, "two AVX-512 cores, fp32: 150 GFLOP/s, 25 GB/s"),
    )
}


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Sizes of an attention encoder-decoder model."""

    name: str
    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    frames_per_s: float
    """Encoder frames of one second."""
    conformer: bool
    """Macaron feed-forward, convolution and relative positions; else a plain transformer."""
    stem_params: int
    """Weights of the subsampling, and how often each is used per encoder frame."""
    stem_flops_per_frame: float
    prefill_nodes: int
    step_nodes: int
    tail_frames: int = 0
    """Frames of stored silence that every row's attention sees besides its own."""
    max_frames: int = 100_000
    """Positions of the encoder, the tail included."""
    depthwise: int = 33

    @property
    def block_params(self) -> int:
        """Weights of one encoder layer that every frame meets."""
        d = self.d_model
        # conformer: 2 feed-forwards 16 d2, attention 4 d2, convolution 4 d2 + 2 d2 and its kernel
        return 26 * d * d + 2 * d * self.depthwise if self.conformer else 12 * d * d

    @property
    def cross_params(self) -> int:
        """Weights that make the decoder's cross keys and values; they belong to the prefill."""
        return 2 * self.decoder_layers * self.d_model**2

    @property
    def prefill_params(self) -> int:
        """Weights of the prefill graph."""
        positions = self.d_model**2 if self.conformer else 0
        layers = self.encoder_layers * (self.block_params + positions)
        return layers + self.cross_params + self.stem_params

    @property
    def step_params(self) -> int:
        """Weights of the step graph: 14 d2 a layer, and the tied embedding."""
        d = self.d_model
        return self.decoder_layers * 14 * d * d + self.vocabulary * d

    def frames(self, seconds: float) -> int:
        """Encoder frames of an utterance."""
        return max(1, ceil(seconds * self.frames_per_s - 1e-9))

    def keys(self, frames: int) -> int:
        """Positions that attention sees in a row of `frames`."""
        return min(frames + self.tail_frames, max(self.max_frames, frames))

    def prefill_flops(self, batch: int, frames: int) -> float:
        """Arithmetic of encoding `batch` rows of `frames`."""
        d, keys = self.d_model, self.keys(frames)
        per_key = (8 if self.conformer else 4) * self.encoder_layers * d
        per_frame = 2.0 * (self.encoder_layers * self.block_params + self.cross_params)
        per_frame += self.stem_flops_per_frame + per_key * keys
        positions = 2.0 * self.encoder_layers * d * d * (2 * frames - 1) if self.conformer else 0.0
        return batch * frames * per_frame + positions

    def step_flops(self, rows: int, frames: int) -> float:
        """Arithmetic of one token for `rows` beams over `frames`."""
        return rows * (2.0 * self.step_params + 4.0 * self.decoder_layers * self.d_model * frames)

    @property
    def position_floats(self) -> int:
        """Values of keys and values of one position in all decoder layers."""
        return 2 * self.decoder_layers * self.d_model


def _firered(name: str, vocabulary: int) -> ModelCost:
    # subsampling: 3x3x32, 3x3x32x32, and 608 → 1280; per frame 2 and 1 steps of 39 and 19 bands
    stem = 9 * 32 + 9 * 32 * 32 + 608 * 1280
    flops = 2.0 * (2 * 39 * 9 * 32 + 19 * 9 * 32 * 32 + 608 * 1280)
    return ModelCost(
        name, 1280, 20, 16, 16, vocabulary, 25.0, True, stem, flops,
        prefill_nodes=1327, step_nodes=949,
    )  # fmt: skip


MODELS = {
    model.name: model
    for model in (
        _firered("firered-aed-l", 7832),
        _firered("firered-aed-v2", 8667),
        ModelCost(
            "whisper-base", 512, 8, 6, 6, 50_265, 50.0, False,
            stem_params=3 * 80 * 512 + 3 * 512 * 512,
            stem_flops_per_frame=2.0 * (2 * 3 * 80 * 512 + 3 * 512 * 512),
            prefill_nodes=369, step_nodes=457, tail_frames=400, max_frames=1500,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the chip."""

    utterance_s: float
    beam: int
    tokens: int
    """Steps of one utterance."""
    cells: int
    """Length of the self-attention cache."""
    update: str = "blend"
    """How a step writes its cache: `append` (only the new values) or `blend` (all of it)."""

    def __post_init__(self) -> None:
        if self.update not in _UPDATE_FORMS:
            raise PlanError(f"found cache update {self.update!r}, expected append or blend")
        if self.utterance_s <= 0 or min(self.beam, self.tokens, self.cells) < 1:
            raise PlanError("utterance, beam, tokens and cells must be above 0")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device, by use."""

    weights: float
    cross: float
    self_cache: float
    """Both sets."""
    scores: float
    """The prefill's largest moment."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.cross + self.self_cache + self.scores


@dataclass(frozen=True, slots=True)
class Estimate:
    """One batch of equal utterances on one chip."""

    batch: int
    frames: int
    prefill_s: float
    step_s: float
    total_s: float
    rtf: float
    """Time per second of audio."""
    prefill_flops: float
    step_flops: float
    step_bytes: float
    memory: Memory
    fits: bool
    expected_share: float
    """Roofline over roofline and operator launches: what can be hoped for, 0 to 1."""
    bound: str
    """What limits a step: `bandwidth` or `arithmetic`."""

    @property
    def expected_rtf(self) -> float:
        """Time per second of audio with the launches."""
        return self.rtf / self.expected_share


def memory(model: ModelCost, chip: Chip, load: Load, batch: int, frames: int) -> Memory:
    """What a batch of rows of `frames` needs on the device."""
    keys, size = model.keys(frames), chip.value_bytes
    return Memory(
        weights=float(size * (model.prefill_params + model.step_params)),
        cross=float(size * model.position_floats * batch * keys),
        self_cache=float(2 * size * model.position_floats * batch * load.beam * load.cells),
        scores=float(SCORE_COPIES * size * model.heads * batch * frames * keys),
    )


def step_bytes(model: ModelCost, chip: Chip, load: Load, batch: int, frames: int) -> float:
    """Memory traffic of one step: weights once, cross keys and values once per utterance (its
    beams share them), the self cache once or twice."""
    cache = model.position_floats * load.beam * load.cells * _UPDATE_FORMS[load.update]
    cross = model.position_floats * model.keys(frames)
    return float(chip.value_bytes * (model.step_params + batch * (cross + cache)))


def estimate(model: ModelCost, chip: Chip, load: Load, batch: int) -> Estimate:
    """Cost of `batch` utterances decoded together."""
    frames = model.frames(load.utterance_s)
    size = chip.value_bytes
    prefill_flops = model.prefill_flops(batch, frames)
    written = model.position_floats * batch * model.keys(frames)
    prefill_bytes = size * (model.prefill_params + written)
    prefill_s = max(prefill_flops / chip.flops, prefill_bytes / chip.bytes_per_s)
    flops = model.step_flops(batch * load.beam, model.keys(frames))
    moved = step_bytes(model, chip, load, batch, frames)
    step_s = max(flops / chip.flops, moved / chip.bytes_per_s)
    total_s = prefill_s + load.tokens * step_s
    launches_s = chip.launch_s * (model.prefill_nodes + load.tokens * model.step_nodes)
    needed = memory(model, chip, load, batch, frames)
    return Estimate(
        batch=batch,
        frames=frames,
        prefill_s=prefill_s,
        step_s=step_s,
        total_s=total_s,
        rtf=total_s / (batch * load.utterance_s),
        prefill_flops=prefill_flops,
        step_flops=flops,
        step_bytes=moved,
        memory=needed,
        fits=needed.total <= FITTING_SHARE * chip.memory_bytes,
        expected_share=total_s / (total_s + launches_s),
        bound="arithmetic" if flops / chip.flops > moved / chip.bytes_per_s else "bandwidth",
    )


def largest_batch(model: ModelCost, chip: Chip, load: Load, frames: int) -> int:
    """Most rows of `frames` that fit; 0 when not even the weights do."""

    def fits(batch: int) -> bool:
        needed = memory(model, chip, load, batch, frames).total
        return needed <= FITTING_SHARE * chip.memory_bytes

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def batch_for_streams(
    model: ModelCost, chip: Chip, load: Load, streams: int
) -> tuple[Estimate | None, float]:
    """Find the smallest batch that keeps up with `streams` that speak without a pause.

    Counts the expected time, launches included.

    Returns:
        (the estimate, or None when no batch that fits keeps up; streams that the best batch, of
        those that fit and are no larger than the number of streams, can serve).
    """
    limit = min(streams, largest_batch(model, chip, load, model.frames(load.utterance_s)))
    best = 0.0
    for batch in range(1, limit + 1):
        found = estimate(model, chip, load, batch)
        best = max(best, 1 / found.expected_rtf)
        if found.expected_rtf * streams <= 1:
            return found, 1 / found.expected_rtf
    return None, best


# ---- gears --------------------------------------------------------------------------------------

Histogram = Mapping[int, float]
"""Length in encoder frames → how often."""


@dataclass(frozen=True, slots=True)
class GearChoice:
    """Gear lengths for a histogram, with what they waste."""

    frames: tuple[int, ...]
    waste: float
    """Share of the encoded frames that is padding, 0 to 1."""


def choose_gears(histogram: Histogram, count: int, *, step: int = 1) -> GearChoice:
    """Pick `count` lengths that minimise the padded frames: exact, by dynamic programming.

    The best gears end at lengths that occur, since a longer gear than its longest utterance only
    pads more. Over lengths sorted ascending, cost(j, k) = min over i < j of cost(i, k - 1) plus
    the padding of lengths i+1..j to length j.

    Args:
        histogram: Lengths and how often each occurs.
        count: Most gears.
        step: Gears are multiples of this many frames.

    Raises:
        PlanError: There is nothing to choose for, or more gears are asked for than can be had.
    """
    if not 1 <= count <= MAX_GEARS:
        raise PlanError(f"found {count} gears, expected 1 to {MAX_GEARS}")
    totals: dict[int, float] = {}
    content = 0.0
    for frames, often in histogram.items():
        if frames < 1 or often < 0:
            raise PlanError(f"found length {frames} x {often}, expected lengths and counts above 0")
        if often:
            length = ceil(frames / step) * step
            totals[length] = totals.get(length, 0.0) + often
            content += frames * often
    if not totals:
        raise PlanError("the histogram is empty")
    lengths = sorted(totals)
    sums = [0.0]
    for length in lengths:
        sums.append(sums[-1] + totals[length])
    n, count = len(lengths), min(count, len(lengths))
    # cost: frames computed for the first j lengths; padding is this less what is constant
    cost = [0.0] + [lengths[j - 1] * sums[j] for j in range(1, n + 1)]
    chosen: list[list[int]] = [[0] * (n + 1)]
    for _ in range(count - 1):
        cost, before = _add_gear(lengths, sums, cost)
        chosen.append(before)
    gears: list[int] = []
    j = n
    for before in reversed(chosen):
        if j == 0:
            break
        gears.append(lengths[j - 1])
        j = before[j]
    return GearChoice(tuple(reversed(gears)), 1 - content / cost[n])


def _add_gear(
    lengths: Sequence[int], sums: Sequence[float], cost: Sequence[float]
) -> tuple[list[float], list[int]]:
    """One more gear: the new costs, and where the gears before end. O(n log n).

    The best split never moves left as j grows (padding obeys the quadrangle inequality), so the
    middle's split bounds those on either side.
    """
    n = len(lengths)
    best, where = [0.0] * (n + 1), [0] * (n + 1)
    ranges = [(1, n, 0, n - 1)]
    while ranges:
        first, last, low, high = ranges.pop()
        if first > last:
            continue
        j = (first + last) // 2
        length = lengths[j - 1]
        candidates = range(low, min(high, j - 1) + 1)
        split = min(candidates, key=lambda i: cost[i] + length * (sums[j] - sums[i]))
        best[j], where[j] = cost[split] + length * (sums[j] - sums[split]), split
        ranges += [(first, j - 1, low, split), (j + 1, last, split, high)]
    return best, where


def batches_up_to(largest: int, lengths: int) -> tuple[int, ...]:
    """Batches 1, 2, 4, ... up to `largest`, as many as the converter's gears allow per length."""
    if largest < 1:
        return ()
    sizes = [1]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    if sizes[-1] != largest:
        sizes.append(largest)
    room = max(1, MAX_GEARS // lengths)
    return tuple(sizes if len(sizes) <= room else [*sizes[: room - 1], sizes[-1]][:room])
