"""A FireRedASR-AED bundle from a released folder: graphs, tokens, normalisation, golden pair.

Every tensor of the checkpoint is read twice, once to be checked and hashed and once to be written,
and none is kept: memory does not grow with the model until the golden question is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from voiced.audio.features.kaldi import HOP, MELS, WINDOW
from voiced.audio.frames import RATE_HZ
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.fetch import Progress
from voiced.engine.build.fireredasr import write_prefill, write_step
from voiced.engine.build.fireredasr_checkpoint import (
    CHECKPOINT,
    CMVN,
    DICTIONARY,
    FireRedDims,
    content_sha256,
    read_checkpoint,
    read_cmvn,
    read_dictionary,
)
from voiced.engine.build.fireredasr_layers import LEAD, encoder_places
from voiced.engine.build.fireredasr_resident import write_resident_prefill, write_resident_step
from voiced.engine.build.graph import Precision, WeightFile
from voiced.engine.build.pack import BundleWriter
from voiced.engine.build.torch_checkpoint import Checkpoint, LazyTensors
from voiced.engine.bundle import GearShape, Golden, Manifest, Source
from voiced.engine.errors import FetchError
from voiced.engine.families.fireredasr import (
    FireRedFrontendInfo,
    FireRedModelInfo,
    FireRedSearch,
    FireRedTokenInfo,
)
from voiced.engine.families.whisper import ResidentInfo, ResidentSpan
from voiced.engine.golden import GOLDEN_INPUT, GOLDEN_OUTPUT, answer

SUBSAMPLING = 4
MAX_S, REFUSE_S = 60, 200
"""README of the releases: above 60 s the model invents text, above 200 s it has no positions."""

GEARS_S = (
    *(half / 2 for half in range(2, 20)),
    *range(10, 20),
    *range(20, 40, 2),
    *range(40, 61, 5),
)
"""A shape costs the default backend nothing, padding does."""

RESIDENT_GEARS_S = (2, 4, 8, 12, 16, 30, 60)
"""Where every gear is compiled and held in memory by itself."""
RESIDENT_ROWS = 5
"""Widest beam of a resident step graph."""
RESIDENT_ROOM = 128
"""Cells beyond the longest text of a gear, for beams to part."""

TOKENS, CMVN_FILE, PLACES, WEIGHTS = "tokens.txt", "cmvn.f64", "places.f32", "weights.bin"

LICENCE = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class Form:
    """What graphs are wanted."""

    precision: Precision = Precision.FP32
    resident: bool = False
    """Caches on the device: what `voiced model convert` starts from."""
    stacked: bool = False
    """The layers of a cache in one tensor, which an Ascend converter needs."""

    @property
    def suffix(self) -> str:
        """Of the bundle's name."""
        if self.precision is Precision.FP32:
            return "-portable" * self.resident
        return f"-{self.precision.value}"

    @property
    def share(self) -> float:
        """Disk that the bundle takes, as a share of a checkpoint in float32."""
        return {Precision.FP32: 1.1, Precision.FP16: 0.6}.get(self.precision, 0.4)


@dataclass(frozen=True, slots=True)
class Release:
    """The files of a released folder that are read."""

    checkpoint: Path
    cmvn: Path
    dictionary: Path

    @classmethod
    def find(cls, folder: Path) -> Release:
        """Find them.

        Raises:
            FetchError: One is missing.
        """
        if not folder.is_dir():
            raise FetchError(f"found no folder {folder}, expected a released model's")
        names = (CHECKPOINT, CMVN, DICTIONARY)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FetchError(
                f"found no {', '.join(missing)} in {folder}, expected {', '.join(names)}: "
                "the files of a FireRedASR-AED or FireRedASR2-AED release"
            )
        return cls(*(folder / name for name in names))


def base_name(checkpoint: Path) -> str:
    """Name for a bundle of this checkpoint: the version decides.

    Raises:
        FetchError: The file is no checkpoint of the family.
    """
    with Checkpoint(checkpoint) as opened:
        dims, _ = read_checkpoint(opened)
    return "fireredasr2-aed" if dims.has_ctc else "fireredasr-aed"


def build_fireredasr(
    release: Release,
    form: Form,
    writer: BundleWriter,
    progress: Progress,
    *,
    search: FireRedSearch | None = None,
    gears_s: Sequence[float] = (),
) -> Manifest:
    """Write a bundle's files.

    Args:
        release: The files to read.
        form: What graphs are wanted.
        writer: Where the files go.
        progress: Told each stage.
        search: Instead of the published settings.
        gears_s: Instead of the usual gears.

    Returns:
        The manifest, complete but for its name and files.

    Raises:
        FetchError: The files do not belong together, or are not the family's.
    """
    search = search or FireRedSearch()
    lengths = gears_s or (RESIDENT_GEARS_S if form.resident else GEARS_S)
    gears = tuple(GearShape(frames=round(s * 100)) for s in lengths)
    most = max(_encoder_frames(gear) for gear in gears)
    with Checkpoint(release.checkpoint) as checkpoint:
        dims, infos = read_checkpoint(checkpoint)
        if dims.mels != MELS:
            raise FetchError(f"{CHECKPOINT}: found {dims.mels} mel bands, expected {MELS}")
        tokens = read_dictionary(release.dictionary, dims.vocabulary)
        cmvn = read_cmvn(release.cmvn, dims.mels)
        digest = content_sha256(checkpoint, infos, progress)
        _write_graphs(LazyTensors(checkpoint, infos), dims, form, search, writer, progress, most)
        resident = None
        if form.resident:
            places = encoder_places(LazyTensors(checkpoint, infos), most)
            places.tofile(writer.path_for(PLACES))
            resident = _resident(form, gears)
    writer.add(TOKENS, "".join(f"{token}\n" for token in tokens).encode())
    cmvn.tofile(writer.path_for(CMVN_FILE))
    manifest = _manifest(dims, form, search, gears, tokens, resident, digest)
    return _with_golden(manifest, writer, progress)


def _encoder_frames(gear: GearShape) -> int:
    return -(-gear.frames // SUBSAMPLING)


def _write_graphs(
    tensors: LazyTensors,
    dims: FireRedDims,
    form: Form,
    search: FireRedSearch,
    writer: BundleWriter,
    progress: Progress,
    max_frames: int,
) -> None:
    prefill, step = writer.path_for("prefill.onnx"), writer.path_for("step.onnx")
    precision, smoothing = form.precision, search.smoothing
    with WeightFile(writer.path_for(WEIGHTS)) as weights:
        told = _Told(tensors, progress)
        progress("writing the encoder graph")
        if form.resident:
            write_resident_prefill(prefill, told, dims, precision, weights, stacked=form.stacked)
        else:
            write_prefill(prefill, told, dims, precision, weights, max_frames=max_frames)
        progress("writing the decoder graph")
        if form.resident:
            write_resident_step(
                step,
                told,
                dims,
                precision,
                weights,
                rows=RESIDENT_ROWS,
                smoothing=smoothing,
                stacked=form.stacked,
            )
        else:
            write_step(step, told, dims, precision, weights, smoothing=smoothing)


class _Told(LazyTensors):
    """Tensors that say how many of them have been looked up."""

    def __init__(self, tensors: LazyTensors, progress: Progress) -> None:
        super().__init__(tensors.checkpoint, tensors.infos)
        self._progress, self._seen = progress, 0

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        self._seen += 1
        self._progress(f"writing the graphs: tensor {self._seen} of about {len(self)}")
        return super().__getitem__(name)


def _resident(form: Form, gears: Sequence[GearShape]) -> ResidentInfo:
    frames = sorted({_encoder_frames(gear) for gear in gears})
    return ResidentInfo(
        rows=RESIDENT_ROWS,
        dtype="float16" if form.precision is Precision.FP16 else "float32",
        places=PLACES,
        spans=tuple(ResidentSpan(n, n + RESIDENT_ROOM) for n in frames),
    )


def _manifest(
    dims: FireRedDims,
    form: Form,
    search: FireRedSearch,
    gears: tuple[GearShape, ...],
    tokens: Sequence[str],
    resident: ResidentInfo | None,
    digest: str,
) -> Manifest:
    def token(name: str) -> int:
        if name not in tokens:
            raise FetchError(f"{DICTIONARY}: found no {name}, expected it among the tokens")
        return tokens.index(name)

    model = FireRedModelInfo(
        version=2 if dims.has_ctc else 1,
        mels=dims.mels,
        d_model=dims.d_model,
        heads=dims.heads,
        encoder_layers=dims.encoder_layers,
        decoder_layers=dims.decoder_layers,
        vocabulary=dims.vocabulary,
        decoder_positions=dims.decoder_positions,
        has_ctc=dims.has_ctc,
        subsampling=SUBSAMPLING,
        lead_frames=LEAD,
        max_s=MAX_S,
        refuse_s=REFUSE_S,
        search=search,
        stacked=form.stacked,
        resident=resident,
    )
    frontend = FireRedFrontendInfo(
        rate_hz=RATE_HZ,
        mels=dims.mels,
        window=WINDOW,
        hop=HOP,
        sample_scale=32768.0,
        cmvn=CMVN_FILE,
        pad_value=0.0,
    )
    ids = FireRedTokenInfo(
        text=TOKENS,
        start=dims.start,
        end=dims.end,
        pad=dims.pad,
        blank=token("<blank>"),
        unknown=token("<unk>"),
    )
    return Manifest(
        name="fireredasr",
        family="fireredasr",
        source=Source(content_sha256=digest, packages=("local",), licence=LICENCE),
        graphs={"prefill": "prefill.onnx", "step": "step.onnx"},
        model=msgspec.to_builtins(model),
        frontend=msgspec.to_builtins(frontend),
        gears=gears,
        tokens=msgspec.to_builtins(ids),
        golden=Golden(input=GOLDEN_INPUT, output=GOLDEN_OUTPUT),
        quantisation="none" if form.precision is Precision.FP32 else form.precision.value,
    )


def _with_golden(manifest: Manifest, writer: BundleWriter, progress: Progress) -> Manifest:
    progress("computing the golden pair")
    # two seconds: the longest that every bundle's gears hold; the same on every machine
    phase = np.cumsum(120 + 40 * np.sin(2 * np.pi * 2 * np.arange(2 * RATE_HZ) / RATE_HZ))
    voice = sum(np.sin(2 * np.pi * k * phase / RATE_HZ) / k for k in range(1, 30))
    sound = np.rint(np.asarray(voice) * 6000).astype(np.int16)
    np.savez(writer.path_for(GOLDEN_INPUT), pcm=sound)
    root = writer.path_for(GOLDEN_INPUT).parent
    golden: dict[str, Any] = dict(answer(root, manifest, sound, OrtBackend()))
    np.savez(writer.path_for(GOLDEN_OUTPUT), **golden)
    return manifest
