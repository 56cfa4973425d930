"""What is particular to Whisper: its tokens, its limits, and which of its answers to distrust.

Pure: no graph is run here. `whisper_model.py` runs the graphs, `whisper_recognizer.py` brings both
together. The rules and their figures come from dev speech, see docs/decisions/0003-silence-tail.md.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from voiced.audio.features.whisper import HOP
from voiced.audio.frames import RATE_HZ
from voiced.engine.buffers import Float
from voiced.engine.decode import Hypothesis
from voiced.engine.errors import BundleError
from voiced.engine.text import chinese_converter

TOKENS_PER_SECOND = 8
"""Honest text of dev speech has at most 5.0 tokens a second; beyond this it is a loop."""
TOKENS_FREE = 8


class ResidentSpan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shape of the step graph."""

    positions: int
    """Encoder positions of a gear and its tail together."""
    cells: int
    """Cells of the self-attention cache."""


class ResidentInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes of graphs whose caches stay on the device."""

    rows: int
    """Rows of the step graph: the widest beam."""
    dtype: Literal["float32", "float16"]
    """Type of what stays on the device."""
    places: str
    """File: the encoder's position encodings, float32[positions, d]."""
    spans: tuple[ResidentSpan, ...]
    """Ascending. A gear's tail fills the first span that leaves it its length."""

    def refuse_wider(self, beam: int, root: Path) -> None:
        """Hold a beam against the rows of the graph in the bundle at `root`.

        Raises:
            BundleError: It has fewer.
        """
        if beam > self.rows:
            raise BundleError(
                root,
                found=f"a decoder of {self.rows} rows",
                expected=f"at least {beam} for engine.beam = {beam}",
                next_step=f"set engine.beam to {self.rows} or less",
            )

    def read_places(self, root: Path, width: int) -> Float:
        """Read the position encodings, float32[positions, width]."""
        return np.fromfile(root / self.places, np.float32).reshape(-1, width)


class WhisperModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`manifest.model` of the family."""

    mels: int
    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    encoder_positions: int
    decoder_positions: int
    resident: ResidentInfo | None = None
    """None: the graphs take and give their caches as host arrays."""

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads


class WhisperTokenInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.tokens` of the family; ids are Whisper's own."""

    text: str
    """File: JSON {"ids": [...], "bytes": [...]}, one entry per column of the output projection;
    bytes are written as latin-1 characters."""
    blank: int
    """Column of the lone space, which may not come first."""
    start: int
    transcribe: int
    no_timestamps: int
    end: int
    no_speech: int
    languages: dict[str, int]
    """ISO 639 code to token id, in the order of the columns of the graph's `specials`, which
    begin with `end` and `no_speech`."""


class WhisperTailInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`manifest.tail` of the family: keys and values of silence, float32[rows, blocks, d]."""

    file: str
    frames: int
    """Encoder frames (20 ms) appended behind a gear."""
    names: tuple[str, ...]
    """Graph input of each row."""
    block: int = 1
    """Encoder frames that one row stands for: it is one of them."""


class Vocabulary:
    """Columns of the output projection ↔ token ids ↔ text."""

    def __init__(self, ids: Sequence[int], pieces: Sequence[bytes]) -> None:
        self.ids = tuple(ids)
        self.pieces = tuple(pieces)

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a bundle's token file."""
        content = json.loads(path.read_bytes())
        return cls(content["ids"], [piece.encode("latin-1") for piece in content["bytes"]])

    def text(self, columns: Sequence[int]) -> str:
        """Join tokens; a character cut in the middle of its bytes is left out."""
        return b"".join(self.pieces[c] for c in columns).decode("utf-8", errors="ignore")


def frames_needed(samples: int) -> int:
    """Feature frames of 10 ms that a gear must have for an utterance of so many samples.

    The tail stands in for any silence behind the audio: a margin of 0.2 s gained nothing.
    """
    return -(-samples // HOP)


SHORT_S, SHORT_GEAR, SHORT_TAIL = 0.75, 140, 400
"""Sound of at most so many seconds, a word alone, has a gear of its own (frames), behind which at
most so many frames of silence stand: in the silence of a whole window Whisper makes phrases of such
a word, as it does when padded to 30 s (docs/decisions/0015-sampled-tail.md)."""


def least_gear(samples: int) -> int:
    """Feature frames of the shortest gear that may be taken for so many samples."""
    frames = frames_needed(samples)
    return frames if samples <= SHORT_S * RATE_HZ else max(frames, SHORT_GEAR + 1)


def tail_length(frames: int, wanted: int, model: WhisperModelInfo) -> int:
    """Encoder positions of silence behind a gear of `frames` feature frames."""
    used = frames // 2
    if frames <= SHORT_GEAR:
        wanted = min(wanted, SHORT_TAIL)
    if model.resident is None:
        return min(wanted, model.encoder_positions - used)
    spans = [span.positions for span in model.resident.spans]
    return next((s for s in spans if s >= used + wanted), spans[-1]) - used


def max_tokens(samples: int, decoder_positions: int) -> int:
    """Length at which an utterance of so many samples cannot be honest text any more."""
    limit = TOKENS_PER_SECOND * samples // RATE_HZ + TOKENS_FREE
    return min(limit, decoder_positions // 2)


def is_no_speech(best: Hypothesis, no_speech: float) -> bool:
    """Say whether an answer is invented: the second line of defence behind the VAD.

    Whisper writes a word for every noise. Of 269 dev clips with speech this refuses none; of the
    noises that an open VAD lets through, about half.

    Args:
        best: The winning hypothesis.
        no_speech: Probability of the no-speech token right after the start token.
    """
    return not best.ended or (no_speech > 0.6 and best.score < -1.0)


def clean_text(text: str, language: str) -> str:
    """Make the family's raw text fit to read: trimmed, Mandarin in simplified characters.

    Whisper writes Mandarin in a mixture of both scripts (54 of 88 dev clips).
    """
    text = unicodedata.normalize("NFC", text).strip()
    return str(chinese_converter("t2s").convert(text)) if language == "zh" and text else text


def join_pieces(pieces: Sequence[tuple[str, str]]) -> str:
    """Join (text, language) of pieces of one segment: a space unless both sides are Mandarin."""
    joined, before = "", ""
    for text, language in pieces:
        if joined and text and not before == language == "zh":
            joined += " "
        joined, before = joined + text, language
    return joined


@dataclass(frozen=True, slots=True)
class LanguageChoice:
    """The language that an utterance is read in, and how sure the model was (1 when pinned)."""

    code: str
    probability: float


def choose_language(
    scores: Sequence[float], languages: Sequence[str], configured: Sequence[str]
) -> LanguageChoice:
    """Pick the likeliest of the configured languages.

    Args:
        scores: Logits, one per entry of `languages`.
        languages: All languages the model knows.
        configured: Those that are wanted here; unknown ones are ignored.
    """
    import numpy as np

    known = [i for i, code in enumerate(languages) if code in configured]
    logits = np.array([scores[i] for i in known], np.float64)
    odds = np.exp(logits - logits.max())
    best = int(odds.argmax())
    return LanguageChoice(languages[known[best]], float(odds[best] / odds.sum()))
