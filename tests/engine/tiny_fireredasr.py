"""Small FireRedASR-AED folders of random weights, in the files of the releases: v1 and v2.

What such a model writes means nothing, but it must write something: with plain random weights it
says one token for ever, as embedding and projection are tied. Small embeddings, large layers, a
final norm of 12 and position encodings that differ from one token to the next make it lively; a
bias towards the end token lets beams end at different steps.

Numbers come from `RandomState.random_sample` alone, which is the same on every machine and version.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.engine.torch_writer import save

from voiced.engine.build.fireredasr_checkpoint import FireRedDims, expected_shapes

SPECIALS = ("<blank>", "<unk>", "<pad>", "<sos>", "<eos>")
CHARACTERS = "".join(chr(0x4E00 + 37 * i) for i in range(100))
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
PIECES = tuple(
    prefix + letters
    for letters in (*LETTERS, "TH", "ER", "ON", "AN", "ING")
    for prefix in ("▁", "")
)
TOKENS = (*SPECIALS, *CHARACTERS, *PIECES)
MELS, KERNEL, POSITIONS = 80, 33, 5000
EMBEDDING, FINAL_NORM, POSITION = 0.3, 12.0, 0.7
GAINS = {r"decoder.*mlp": 4.0, r"decoder.*fc": 1.0, r"decoder.*attn.w_[qk]s": 3.0}
"""Of weights, by the beginning of their name; 1.5 elsewhere."""


@dataclass(frozen=True)
class Tiny:
    """A model of random weights."""

    seed: int
    version: int = 1
    d_model: int = 64
    heads: int = 4
    layers: int = 2
    end_bias: float = 0.0
    """Added to the end token's logit, about: the higher, the shorter the texts."""
    pad_bias: float = 0.0
    """The same of `<pad>`, which else is never written."""
    more_tokens: int = 0
    """Tokens beyond `TOKENS`."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its dictionary."""
        return (*TOKENS, *(f"<{number}>" for number in range(self.more_tokens)))

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"firered-v{self.version}-{self.seed}-{self.end_bias:g}"

    @property
    def dims(self) -> FireRedDims:
        """Sizes."""
        return FireRedDims(
            mels=MELS,
            d_model=self.d_model,
            heads=self.heads,
            encoder_layers=self.layers,
            decoder_layers=self.layers,
            kernel=KERNEL,
            vocabulary=len(self.tokens),
            decoder_positions=POSITIONS,
            start=3,
            end=4,
            pad=2,
            has_ctc=self.version == 2,
        )


def uniform(random: np.random.RandomState, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """float32 of standard deviation `scale`."""
    return ((random.random_sample(shape) * 2 - 1) * (3**0.5 * scale)).astype(np.float32)


def sinusoids(positions: np.ndarray, width: int) -> np.ndarray:
    """Position encodings float32[positions, width], sine and cosine in turn."""
    rates = np.exp(np.arange(0, width, 2) * -(np.log(10000.0) / width))
    angles = positions[:, None] * rates
    table = np.empty((len(positions), width))
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table.astype(np.float32)


def weights(tiny: Tiny) -> OrderedDict[str, np.ndarray]:
    """The state dict."""
    random, dims = np.random.RandomState(tiny.seed), tiny.dims
    d = dims.d_model
    state: OrderedDict[str, np.ndarray] = OrderedDict()
    for name, shape in expected_shapes(dims).items():
        if name == "encoder.positional_encoding.pe":
            reach = dims.encoder_positions - 1
            state[name] = sinusoids(np.arange(reach, -reach - 1, -1), d)[None]
        elif name == "decoder.positional_encoding.pe":
            # not sinusoids, most of which hardly move from one token to the next
            state[name] = uniform(random, shape, POSITION)
        elif name == "decoder.tgt_word_prj.weight":
            state[name] = state["decoder.tgt_word_emb.weight"]  # tied, stored once
        elif name == "decoder.tgt_word_emb.weight":
            table = uniform(random, shape, EMBEDDING / d**0.5)
            if not tiny.pad_bias:
                table[dims.pad] = 0  # its `padding_idx`
            state[name] = table
        elif len(shape) == 1 and name.endswith("weight"):  # a norm
            centre = FINAL_NORM if name == "decoder.layer_norm_out.weight" else 1.0
            state[name] = (centre * (1 + uniform(random, shape, 0.1))).astype(np.float32)
        elif len(shape) == 1:
            state[name] = uniform(random, shape, 0.1)
        elif name.endswith(("bias_u", "bias_v")):
            state[name] = uniform(random, shape, 0.2)
        else:
            gain = next((g for part, g in GAINS.items() if re.match(part, name)), 1.5)
            state[name] = uniform(random, shape, gain / float(np.prod(shape[1:])) ** 0.5)
    for token, bias in ((dims.end, tiny.end_bias), (dims.pad, tiny.pad_bias)):
        if bias:
            row = state["decoder.tgt_word_emb.weight"][token]
            state["decoder.layer_norm_out.bias"] += bias * row / float(row @ row)
    return state


def arguments(tiny: Tiny) -> argparse.Namespace:
    """The 24 fields of a release."""
    dims = tiny.dims
    return argparse.Namespace(
        blank="<blank>", unk="<unk>", pad="<pad>", sos="<sos>", eos="<eos>",
        unk_id=1, pad_id=dims.pad, sos_id=dims.start, eos_id=dims.end,
        input_length_max=60.0, input_length_min=0.1, output_length_max=250, output_length_min=1,
        idim=dims.mels, odim=dims.vocabulary, n_layers_enc=dims.encoder_layers,
        n_layers_dec=dims.decoder_layers, n_head=dims.heads, d_model=dims.d_model,
        d_inner=4 * dims.d_model, residual_dropout=0.1, dropout_rate=0.1,
        kernel_size=dims.kernel, pe_maxlen=dims.decoder_positions,
    )  # fmt: skip


def cmvn(seed: int) -> bytes:
    """Statistics in Kaldi's binary format, 1311 bytes: about what speech has."""
    random, count = np.random.RandomState(seed + 1000), 1e6
    means = 8 + 4 * random.random_sample(MELS)
    deviations = 2 + 2 * random.random_sample(MELS)
    stats = np.zeros((2, MELS + 1))
    stats[0, :MELS], stats[0, MELS] = means * count, count
    stats[1, :MELS] = (deviations**2 + means**2) * count
    sizes = b"\4" + struct.pack("<i", 2) + b"\4" + struct.pack("<i", MELS + 1)
    return b"\0BDM " + sizes + stats.astype("<f8").tobytes()


def sentence_pieces() -> bytes:
    """A SentencePiece model of `PIECES` (sentencepiece_model.proto), written field by field."""

    def message(number: int, body: bytes) -> bytes:
        size, count = b"", len(body)
        while count > 127:
            size, count = size + bytes([count & 127 | 128]), count >> 7
        return bytes([number << 3 | 2]) + size + bytes([count]) + body

    def piece(text: str, score: float, kind: int) -> bytes:
        body = message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
        return message(1, body)

    made = piece("<unk>", 0.0, 2) + piece("<s>", 0.0, 3) + piece("</s>", 0.0, 3)
    for rank, text in enumerate(PIECES):
        made += piece(text, -float(rank), 1)
    return made + message(2, b"\x18\x02") + message(3, message(1, b"identity"))


def write_folder(folder: Path, tiny: Tiny) -> Path:
    """Write the files of a release into a new folder; returns it."""
    folder.mkdir(parents=True)
    save(folder / "model.pth.tar", {"args": arguments(tiny), "model_state_dict": weights(tiny)})
    (folder / "cmvn.ark").write_bytes(cmvn(tiny.seed))
    lines = "".join(f"{token} {index}\n" for index, token in enumerate(tiny.tokens))
    (folder / "dict.txt").write_text(lines, encoding="utf-8")
    (folder / "train_bpe1000.model").write_bytes(sentence_pieces())
    (folder / "config.yaml").write_bytes(b"")
    return folder


def features(seed: int, frames: int) -> np.ndarray:
    """Normalised features of one utterance, float32[frames, MELS]: slow and quick changes."""
    random = np.random.RandomState(seed)
    slow = np.repeat(uniform(random, (frames // 10 + 1, MELS), 0.8), 10, axis=0)[:frames]
    return slow + uniform(random, (frames, MELS), 0.6)
