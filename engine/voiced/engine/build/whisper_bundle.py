"""Everything of a Whisper bundle around its graphs: tokens, silence tail, gears, golden pair."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from voiced.audio.features.whisper import log_mel
from voiced.audio.frames import RATE_HZ
from voiced.engine.backends.base import Backend
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.fetch import Progress
from voiced.engine.build.graph import Precision
from voiced.engine.build.pack import BundleWriter
from voiced.engine.build.whisper import prefill_graph
from voiced.engine.build.whisper_layers import Tensors, WhisperDims, read_dims
from voiced.engine.build.whisper_resident import resident_prefill_graph, resident_step_graph
from voiced.engine.build.whisper_step import step_graph
from voiced.engine.bundle import GearShape, Golden, Manifest
from voiced.engine.errors import FetchError
from voiced.engine.families.whisper import (
    SHORT_GEAR,
    ResidentInfo,
    ResidentSpan,
    WhisperModelInfo,
    WhisperTailInfo,
)
from voiced.engine.golden import GOLDEN_INPUT, GOLDEN_OUTPUT, answer

GEARS_S = (
    SHORT_GEAR / 100,
    *(quarter / 4 for quarter in range(6, 24)),
    *(half / 2 for half in range(12, 20)),
    *range(10, 17),
    20,
    24,
    30,
)
"""Gear lengths in seconds: closest where utterances are frequent. A shape costs the default backend
nothing, padding does. The last is the model's own length and has no room for a tail."""

TAIL_FRAMES = 400
"""Encoder frames of silence behind a gear: the shortest tail whose error equals 30-s padding in
every group of clips."""

TAIL_BLOCK = 8
"""Encoder frames of the tail for which one key and one value stand, where graphs can weigh them. So
cheap a tail reaches to the end of the model's window, as in training."""

RESIDENT_GEARS_S = (2, 4, 6, 8, 12, 16, 28)
"""Gear lengths where every gear is compiled and held in memory by itself. The last leaves the
shortest tail that is not empty, 2 s."""

RESIDENT_SPANS = ((700, 128), (1200, 224), (1500, 320))
"""Encoder positions and decoder cells of the step graph: 6, 16 and 28 s with a tail of at least
8, 8 and 2 s, and their longest text of 56, 136 and 224 tokens with room for beams to part."""

RESIDENT_ROWS = 5
"""Widest beam of a resident step graph."""

PLACES = "places.f32"

_PAIRS = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
# Tokens that openai/whisper suppresses because they are never spoken: symbols, and a hyphen or
# quote at the start of a word (whisper/tokenizer.py, `non_speech_tokens`).
_SYMBOLS = (*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', *_PAIRS.split())
_NOTES = tuple("♩♪♫♬♭♮♯")
_WORD_STARTS = (" -", " '")


def byte_alphabet() -> dict[int, str]:
    """Map each byte to the character that stands for it in GPT-2's byte-level vocabularies.

    Printable bytes stand for themselves, the others for code points from 256 on, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (b for b in range(256) if b not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def suppressed(vocabulary: Mapping[str, int]) -> set[int]:
    """Return the ids of the tokens that are never spoken."""
    alphabet = byte_alphabet()

    def write(text: str) -> str:
        return "".join(alphabet[b] for b in text.encode())

    ids = {vocabulary[write(text)] for text in _WORD_STARTS}
    for symbol in (*_SYMBOLS, *_NOTES):
        for text in (write(symbol), write(" " + symbol)):
            if text in vocabulary:
                ids.add(vocabulary[text])
            elif symbol in _NOTES:  # the first of several tokens gives the note away
                length = max(n for n in range(1, len(text)) if text[:n] in vocabulary)
                ids.add(vocabulary[text[:length]])
    return ids


def read_tokens(tokenizer_json: Path) -> tuple[list[int], list[bytes], dict[str, Any]]:
    """Read a Hugging Face `tokenizer.json`.

    Returns:
        (ids of the text tokens that may be written, their bytes, special ids by name).

    Raises:
        FetchError: The file is not Whisper's.
    """
    try:
        content = json.loads(tokenizer_json.read_bytes())
        vocabulary: dict[str, int] = content["model"]["vocab"]
        special = {t["content"]: int(t["id"]) for t in content["added_tokens"]}
        end = special["<|endoftext|>"]
        names = {
            "start": special["<|startoftranscript|>"],
            "transcribe": special["<|transcribe|>"],
            "no_timestamps": special["<|notimestamps|>"],
            "end": end,
            "no_speech": special.get("<|nospeech|>") or special["<|nocaptions|>"],
            "languages": {
                match[1]: id_
                for name, id_ in sorted(special.items(), key=lambda item: item[1])
                if (match := re.fullmatch(r"<\|([a-z]{2,3})\|>", name))
            },
        }
    except (ValueError, KeyError, TypeError) as error:
        raise FetchError(
            f"{tokenizer_json} is no Whisper tokenizer: {type(error).__name__} {error}"
        ) from error
    letters = {char: byte for byte, char in byte_alphabet().items()}
    banned = suppressed(vocabulary)
    text = sorted((i, s) for s, i in vocabulary.items() if i < end and i not in banned)
    return [i for i, _ in text], [bytes(letters[c] for c in s) for _, s in text], names


def calibration_sound(seconds: float) -> npt.NDArray[np.float32]:
    """A buzz with the rhythm and the formants of speech, float32[n] at 16 kHz, peak 0.3.

    A tail recorded behind silence alone does not stop the loops (4 of 26 clips); behind this it
    does, as well as behind real speech.
    """
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = np.cumsum(120 * (1 + 0.05 * np.sin(2 * np.pi * 3 * t))) / RATE_HZ
    source = sum(np.sin(2 * np.pi * k * phase) / k for k in range(1, 40))
    spectrum, hz = np.fft.rfft(source), np.fft.rfftfreq(len(t), 1 / RATE_HZ)
    formants = ((600, 80, 1.0), (1200, 100, 0.6), (2500, 150, 0.3), (3500, 200, 0.1))
    shape = sum(gain / (1 + ((hz - centre) / width) ** 2) for centre, width, gain in formants)
    voice = np.fft.irfft(spectrum * shape, len(t)) * (1 - np.cos(2 * np.pi * 3.5 * t))
    return np.asarray(0.3 * voice / np.abs(voice).max(), dtype=np.float32)


TAIL_SOUND_S = 1.2
"""Length of the sound before the recorded silence; shorter than the shortest gear."""


def record_tail(
    backend: Backend, record_graph: Path, dims: WhisperDims, outputs: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Run the recording graph over a short sound and silence: float32[outputs, positions, d]."""
    positions = dims.encoder_positions
    features = log_mel(calibration_sound(TAIL_SOUND_S), positions * 2, mels=dims.mels)
    tail = np.zeros((len(outputs), positions, dims.d_model), np.float32)
    session = backend.load(record_graph, threads=2)
    session.bind({"mel": features}, dict(zip(outputs, tail, strict=True))).run()
    return tail


def sampled(tail: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """Take the middle of each `block` positions: [outputs, positions, d] → [outputs, blocks, d].

    A sample keeps what the sum of exp(score) over a block is on average. The mean of the keys does
    not: it loses the part of their scores that changes from position to position, and with it
    weight (measured: three times as far from the full tail as a sample).
    """
    blocks = tail.shape[1] // block
    return np.ascontiguousarray(tail[:, block // 2 :: block][:, :blocks])


def build_whisper(
    tensors: Tensors, tokenizer_json: Path, writer: BundleWriter, progress: Progress
) -> Manifest:
    """Write a Whisper bundle's files from its weights: int8, caches in host arrays.

    Args:
        tensors: Weights by their WhisperSpec names.
        tokenizer_json: The tokenizer that belongs to them.
        writer: Where the files go.
        progress: Told each stage.

    Returns:
        The manifest, complete but for name, source and files.

    Raises:
        FetchError: The tokenizer does not fit.
    """
    dims, tokens = read_dims(tensors), _Tokens.read(tokenizer_json)
    precision = Precision.INT8
    progress("building the encoder graph")
    onnx.save(prefill_graph(tensors, dims, precision), writer.path_for("prefill.onnx"))
    progress("building the decoder graph")
    step = step_graph(
        tensors, dims, precision, text_ids=tokens.text_ids, special_ids=tokens.special_ids
    )
    onnx.save(step, writer.path_for("step.onnx"))
    return _complete(tensors, tokens, precision, GEARS_S, None, writer, progress)


def build_resident_whisper(
    tensors: Tensors,
    tokenizer_json: Path,
    writer: BundleWriter,
    progress: Progress,
    *,
    precision: Literal["fp32", "fp16"],
) -> Manifest:
    """Write a Whisper bundle whose caches stay on the device; see `build_whisper`.

    Other runtimes' bundles are converted from it: few operators, few gears.
    """
    kind = Precision(precision)
    dims, tokens = read_dims(tensors), _Tokens.read(tokenizer_json)
    progress("building the encoder graph")
    prefill = resident_prefill_graph(tensors, dims, kind)
    onnx.save(prefill, writer.path_for("prefill.onnx"))
    progress("building the decoder graph")
    step = resident_step_graph(
        tensors,
        dims,
        kind,
        rows=RESIDENT_ROWS,
        text_ids=tokens.text_ids,
        special_ids=tokens.special_ids,
    )
    onnx.save(step, writer.path_for("step.onnx"))
    places = np.asarray(tensors["encoder/position_encodings/encodings"], np.float32)
    writer.add(PLACES, places.tobytes())
    resident = ResidentInfo(
        rows=RESIDENT_ROWS,
        dtype="float16" if kind is Precision.FP16 else "float32",
        places=PLACES,
        spans=tuple(ResidentSpan(positions, cells) for positions, cells in RESIDENT_SPANS),
    )
    return _complete(tensors, tokens, kind, RESIDENT_GEARS_S, resident, writer, progress)


@dataclass(frozen=True, slots=True)
class _Tokens:
    ids: list[int]
    pieces: list[bytes]
    special: dict[str, Any]

    @classmethod
    def read(cls, tokenizer_json: Path) -> _Tokens:
        return cls(*read_tokens(tokenizer_json))

    @property
    def text_ids(self) -> npt.NDArray[np.int32]:
        return np.asarray(self.ids, np.int32)

    @property
    def special_ids(self) -> npt.NDArray[np.int32]:
        special = self.special
        ids = [special["end"], special["no_speech"], *special["languages"].values()]
        return np.asarray(ids, np.int32)


def _complete(
    tensors: Tensors,
    tokens: _Tokens,
    precision: Precision,
    gears_s: Sequence[float],
    resident: ResidentInfo | None,
    writer: BundleWriter,
    progress: Progress,
) -> Manifest:
    """Write what stands around the graphs, and ask the golden question."""
    dims = read_dims(tensors)
    texts = {"ids": tokens.ids, "bytes": [piece.decode("latin-1") for piece in tokens.pieces]}
    writer.add("tokens.json", json.dumps(texts, ensure_ascii=False).encode())

    progress("recording the silence tail")
    backend = OrtBackend()
    record = writer.scratch_dir() / "record.onnx"
    # float16 is a type of devices; the tail is stored as float32 in any case
    recorded = Precision.FP32 if precision is Precision.FP16 else precision
    onnx.save(prefill_graph(tensors, dims, recorded, record=True), record)
    rows, block, frames = _tail_rows(dims), TAIL_BLOCK, dims.encoder_positions
    if resident is not None:
        block, frames = 1, TAIL_FRAMES
    tail = record_tail(backend, record, dims, list(rows))
    sampled(tail, block).tofile(writer.path_for("tail.f32"))

    sizes = {k: v for k, v in asdict(dims).items() if k != "vocabulary"}
    manifest = Manifest(
        name="whisper",
        family="whisper",
        graphs={"prefill": "prefill.onnx", "step": "step.onnx"},
        model=msgspec.to_builtins(WhisperModelInfo(**sizes, resident=resident)),
        frontend={"rate_hz": RATE_HZ, "hop": 160, "window": 400, "mels": dims.mels},
        gears=tuple(GearShape(frames=2 * round(s * 50)) for s in gears_s),
        tokens={
            "text": "tokens.json",
            "blank": tokens.pieces.index(b" "),
            **tokens.special,
        },
        tail=msgspec.to_builtins(WhisperTailInfo("tail.f32", frames, tuple(rows.values()), block)),
        golden=Golden(input=GOLDEN_INPUT, output=GOLDEN_OUTPUT),
        quantisation="none" if precision is Precision.FP32 else precision.value,
    )
    progress("computing the golden pair")
    sound = np.rint(calibration_sound(1.2) * 32767).astype(np.int16)
    np.savez(writer.path_for(GOLDEN_INPUT), pcm=sound)
    root = writer.path_for(GOLDEN_INPUT).parent
    golden: dict[str, Any] = dict(answer(root, manifest, sound, backend))
    np.savez(writer.path_for(GOLDEN_OUTPUT), **golden)
    return manifest


def _tail_rows(dims: WhisperDims) -> dict[str, str]:
    """Outputs of the recording graph → inputs of the prefill graph."""
    rows = {
        f"encoder_{x}_{i}": f"encoder_{x}_{i}" for i in range(dims.encoder_layers) for x in "kv"
    }
    return rows | {
        f"cross_{x}_{i}": f"tail_{x}_{i}" for i in range(dims.decoder_layers) for x in "kv"
    }
