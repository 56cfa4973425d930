"""Everything of a Whisper bundle around its graphs: tokens, silence tail, gears, golden pair."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from voiced.engine.build.whisper import prefill_graph, step_graph
from voiced.engine.build.whisper_layers import Tensors, WhisperDims, read_dims
from voiced.engine.bundle import GearShape, Golden, Manifest
from voiced.engine.errors import FetchError
from voiced.engine.families.whisper import WhisperModelInfo
from voiced.engine.golden import GOLDEN_INPUT, GOLDEN_OUTPUT, answer

GEARS_S = (1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 30)
"""Gear lengths in seconds; 0.5 s apart where utterances are frequent. The last is the model's own
length and has no room for a tail."""

TAIL_FRAMES = 400
"""Encoder frames of silence behind a gear: the shortest tail whose error equals 30-s padding in
every group of clips."""

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


def build_whisper(
    tensors: Tensors, tokenizer_json: Path, writer: BundleWriter, progress: Progress
) -> Manifest:
    """Write a Whisper bundle's files from its weights.

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
    dims = read_dims(tensors)
    ids, pieces, special = read_tokens(tokenizer_json)
    precision = Precision.INT8
    special_ids = [special["end"], special["no_speech"], *special["languages"].values()]

    progress("building the encoder graph")
    onnx.save(prefill_graph(tensors, dims, precision), writer.path_for("prefill.onnx"))
    progress("building the decoder graph")
    onnx.save(
        step_graph(
            tensors,
            dims,
            precision,
            text_ids=np.asarray(ids, np.int32),
            special_ids=np.asarray(special_ids, np.int32),
        ),
        writer.path_for("step.onnx"),
    )
    texts = {"ids": ids, "bytes": [piece.decode("latin-1") for piece in pieces]}
    writer.add("tokens.json", json.dumps(texts, ensure_ascii=False).encode())

    progress("recording the silence tail")
    backend = OrtBackend()
    record = writer.scratch_dir() / "record.onnx"
    onnx.save(prefill_graph(tensors, dims, precision, record=True), record)
    rows = _tail_rows(dims)
    record_tail(backend, record, dims, list(rows)).tofile(writer.path_for("tail.f32"))

    manifest = Manifest(
        name="whisper",
        family="whisper",
        graphs={"prefill": "prefill.onnx", "step": "step.onnx"},
        model=msgspec.to_builtins(
            WhisperModelInfo(**{k: v for k, v in asdict(dims).items() if k != "vocabulary"})
        ),
        frontend={"rate_hz": RATE_HZ, "hop": 160, "window": 400, "mels": dims.mels},
        gears=tuple(GearShape(frames=round(s * 100)) for s in GEARS_S),
        tokens={"text": "tokens.json", "blank": pieces.index(b" "), **special},
        tail={"file": "tail.f32", "frames": TAIL_FRAMES, "names": list(rows.values())},
        golden=Golden(input=GOLDEN_INPUT, output=GOLDEN_OUTPUT),
        quantisation=precision.value,
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
