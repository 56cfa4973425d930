"""What a FireRedASR-AED bundle says about itself: `manifest.model`, `.tokens` and `.frontend`.

Pure: no graph is run here. Version 1 is FireRedASR-AED, version 2 FireRedASR2-AED, which adds a CTC
head to the encoder. The graphs are described in `build/fireredasr.py`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from voiced.engine.families.whisper import ResidentInfo


class FireRedSearch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model is meant to be searched; the published figures were made so."""

    beam: int = 3
    smoothing: float = 1.25
    """Logits are divided by it before the log-softmax. Built into the step graph."""
    length_penalty: float = 0.6
    """A finished text's score is divided by ((5 + tokens) / 6) to this power; tokens count the
    start token and not the end."""
    eos_penalty: float = 1.0
    """Factor of the end token's log-probability; 1 changes nothing."""


class FireRedModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`manifest.model` of the family."""

    version: Literal[1, 2]
    mels: int
    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    """Token ids, and columns of the output projection."""
    decoder_positions: int
    """Most tokens of a text, the start token counted."""
    has_ctc: bool
    """The prefill graph also returns `ctc`."""
    subsampling: int
    """Feature frames of one encoder frame, rounded up at the end."""
    lead_frames: int
    """Feature frames of zeros behind a gear: its input has `subsampling * encoder frames + 3`."""
    max_s: int
    """Longest segment that the model was made for."""
    refuse_s: int
    """From here on there are no position encodings."""
    search: FireRedSearch
    stacked: bool = False
    """The layers of a resident cache lie behind each other in one tensor."""
    resident: ResidentInfo | None = None
    """None: the graphs take and give their caches as host arrays. Else its `places` are the
    encoder's relative position encodings, float32[2 P, d] from distance P to 1 - P, and its spans
    count encoder frames."""

    @property
    def tensors(self) -> int:
        """Tensors that the layers of a resident cache are in."""
        return 1 if self.stacked else self.decoder_layers

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads

    def encoder_frames(self, frames: int) -> int:
        """Encoder frames of so many feature frames."""
        return -(-frames // self.subsampling)

    def input_frames(self, frames: int) -> int:
        """Length of the prefill graph's `features` for a gear of so many feature frames."""
        return self.subsampling * self.encoder_frames(frames) + self.lead_frames


class FireRedTokenInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.tokens` of the family; an id is also a column of the output projection."""

    text: str
    """File: UTF-8, one token per line, in the order of the ids."""
    start: int
    end: int
    pad: int
    blank: int
    """Of the CTC head."""
    unknown: int


class FireRedFrontendInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.frontend` of the family: Kaldi's filter bank over samples of 16-bit range."""

    rate_hz: int
    mels: int
    window: int
    """Samples."""
    hop: int
    """Samples."""
    sample_scale: float
    """What 1.0 of a float sample becomes: 32768, the samples are not divided."""
    cmvn: str
    """File: float64[2, mels], means and inverse standard deviations: (x - mean) * inverse in
    float64, then float32."""
    pad_value: float
    """Of feature frames behind the last one, after normalisation."""
