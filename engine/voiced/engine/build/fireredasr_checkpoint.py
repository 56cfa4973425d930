"""A released FireRedASR-AED folder: sizes, vocabulary, normalisation, and every tensor checked.

Files: `model.pth.tar` (a torch checkpoint {"args", "model_state_dict"}), `cmvn.ark`, `dict.txt`.
`config.yaml` is empty in the releases and `train_bpe1000.model` only serves to train: neither is
read. Versions 1 and 2 differ by the CTC head, so the checkpoint itself says which it is.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.build.torch_checkpoint import Checkpoint, CheckpointError, TensorInfo
from voiced.engine.errors import FetchError

CHECKPOINT, CMVN, DICTIONARY = "model.pth.tar", "cmvn.ark", "dict.txt"

CHANNELS = 32
"""Of the two convolutions that subsample (Conv2dSubsampling)."""
ENCODER_POSITIONS = 5000
"""RelPositionalEncoding's own length, whatever `pe_maxlen` says."""
PREFIXES = ("encoder.", "decoder.", "ctc.")
"""Of tensors that are this model's; others may ride along in a version 2 file."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FireRedDims:
    """Sizes, from the checkpoint's `args`."""

    mels: int
    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    kernel: int
    """Of the encoder's depthwise convolution."""
    vocabulary: int
    decoder_positions: int
    start: int
    end: int
    pad: int
    has_ctc: bool

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads

    @property
    def version(self) -> int:
        """1 or 2."""
        return 2 if self.has_ctc else 1

    @property
    def encoder_positions(self) -> int:
        """Encoder frames that the relative position encodings reach."""
        return ENCODER_POSITIONS


def read_checkpoint(checkpoint: Checkpoint) -> tuple[FireRedDims, dict[str, TensorInfo]]:
    """Read the sizes and check name, shape and type of every tensor; reads no numbers.

    Returns:
        (sizes, tensors by name). Tensors that are no part of this model are left out.

    Raises:
        CheckpointError: It is another model, or not a whole one.
    """
    path, content = checkpoint.path, checkpoint.content
    if not isinstance(content, Mapping) or not {"args", "model_state_dict"} <= set(content):
        names = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no dictionary"
        raise _wrong(path, names or "nothing", "args and model_state_dict")
    state = content["model_state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, TensorInfo) for k, v in state.items()
    ):
        raise _wrong(path, "a model_state_dict with other things", "tensors by name")
    tensors = {name: info for name, info in state.items() if name.startswith(PREFIXES)}
    dims = _read_dims(
        path,
        vars(content["args"]) if hasattr(content["args"], "__dict__") else {},
        has_ctc=any(name.startswith("ctc.") for name in tensors),
    )
    expected = expected_shapes(dims)
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        found = f"{_some('no', missing)}{' and ' * bool(missing and unknown)}" + _some("", unknown)
        raise _wrong(path, found, f"the {len(expected)} tensors of FireRedASR-AED")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise _wrong(path, f"{name} {list(tensors[name].shape)}", f"{list(shape)} as in args")
        if tensors[name].dtype not in {"float32", "float16", "bfloat16"}:
            raise _wrong(path, f"{name} of type {tensors[name].dtype}", "floating point")
    return dims, {name: tensors[name] for name in expected}


def _some(word: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{word or 'the unknown tensor'} {names[0]}{more}"


def _read_dims(path: Path, args: Mapping[str, Any], *, has_ctc: bool) -> FireRedDims:
    def number(name: str, least: int = 1) -> int:
        value = args.get(name)
        if type(value) is not int or value < least:
            raise _wrong(path, f"args.{name} = {value!r}", "a whole number, as in FireRedASR-AED")
        return value

    dims = FireRedDims(
        mels=number("idim"),
        d_model=number("d_model"),
        heads=number("n_head"),
        encoder_layers=number("n_layers_enc"),
        decoder_layers=number("n_layers_dec"),
        kernel=number("kernel_size"),
        vocabulary=number("odim"),
        decoder_positions=number("pe_maxlen"),
        start=number("sos_id", 0),
        end=number("eos_id", 0),
        pad=number("pad_id", 0),
        has_ctc=has_ctc,
    )
    if dims.d_model % dims.heads or dims.d_model % 2 or dims.kernel % 2 == 0:
        raise _wrong(
            path,
            f"d_model {dims.d_model}, heads {dims.heads}, kernel {dims.kernel}",
            "an even multiple of the heads, and an odd kernel",
        )
    for name, token in (("sos", dims.start), ("eos", dims.end), ("pad", dims.pad)):
        if token >= dims.vocabulary:
            raise _wrong(path, f"{name}_id {token}", f"less than odim {dims.vocabulary}")
    return dims


def expected_shapes(dims: FireRedDims) -> dict[str, Shape]:
    """Every tensor of the model by its name in the state dict."""
    d, inner = dims.d_model, 4 * dims.d_model
    made: dict[str, Shape] = {}

    def linear(name: str, out: int, into: int, *, bias: bool = True) -> None:
        made[f"{name}.weight"] = (out, into)
        if bias:
            made[f"{name}.bias"] = (out,)

    def norm(name: str, width: int = d) -> None:
        made[f"{name}.weight"] = made[f"{name}.bias"] = (width,)

    front = "encoder.input_preprocessor"
    for index, channels in (("0", 1), ("2", CHANNELS)):
        made[f"{front}.conv.{index}.weight"] = (CHANNELS, channels, 3, 3)
        made[f"{front}.conv.{index}.bias"] = (CHANNELS,)
    linear(f"{front}.out", d, CHANNELS * (((dims.mels - 1) // 2 - 1) // 2))
    made["encoder.positional_encoding.pe"] = (1, 2 * dims.encoder_positions - 1, d)
    for layer in range(dims.encoder_layers):
        at = f"encoder.layer_stack.{layer}"
        for ffn in ("ffn1", "ffn2"):
            norm(f"{at}.{ffn}.net.0")
            linear(f"{at}.{ffn}.net.1", inner, d)
            linear(f"{at}.{ffn}.net.4", d, inner)
        for letter in "uv":
            made[f"{at}.mhsa.pos_bias_{letter}"] = (dims.heads, dims.d_head)
        for each in ("w_qs", "w_ks", "w_vs", "fc", "linear_pos"):
            linear(f"{at}.mhsa.{each}", d, d, bias=False)
        for letter in "qkv":
            norm(f"{at}.mhsa.layer_norm_{letter}")
        norm(f"{at}.conv.pre_layer_norm")
        made[f"{at}.conv.pointwise_conv1.weight"] = (4 * d, d, 1)
        made[f"{at}.conv.depthwise_conv.weight"] = (2 * d, 1, dims.kernel)
        norm(f"{at}.conv.batch_norm", 2 * d)
        made[f"{at}.conv.pointwise_conv2.weight"] = (d, 2 * d, 1)
        norm(f"{at}.layer_norm")

    made["decoder.tgt_word_emb.weight"] = (dims.vocabulary, d)
    made["decoder.positional_encoding.pe"] = (1, dims.decoder_positions, d)
    for layer in range(dims.decoder_layers):
        at = f"decoder.layer_stack.{layer}"
        for attention in ("self_attn", "cross_attn"):
            norm(f"{at}.{attention}_norm")
            for each in ("w_qs", "w_ks", "w_vs", "fc"):
                linear(f"{at}.{attention}.{each}", d, d, bias=each != "w_ks")
        norm(f"{at}.mlp_norm")
        linear(f"{at}.mlp.w_1", inner, d)
        linear(f"{at}.mlp.w_2", d, inner)
    linear("decoder.tgt_word_prj", dims.vocabulary, d, bias=False)
    norm("decoder.layer_norm_out")
    if dims.has_ctc:
        linear("ctc.ctc_lo", dims.vocabulary, d)
    return made


def content_sha256(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], progress: Callable[[str], None]
) -> str:
    """Hash names, shapes and numbers, whoever packed them; reads every tensor once.

    Raises:
        CheckpointError: A number is not finite.
    """
    whole = hashlib.sha256()
    for count, name in enumerate(sorted(tensors), 1):
        progress(f"checking the weights: tensor {count} of {len(tensors)}")
        array = checkpoint.read(tensors[name])
        if not np.isfinite(array).all():
            raise _wrong(checkpoint.path, f"{name} with NaN or infinity", "finite numbers")
        digest = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
        whole.update(f"{name} {list(array.shape)} {digest}\n".encode())
    return whole.hexdigest()


def read_cmvn(path: Path, mels: int) -> npt.NDArray[np.float64]:
    """Read Kaldi's global statistics: float64[2, mels], means and inverse standard deviations.

    The file is one binary double matrix without a key, 2 x (mels + 1): sums and sums of squares,
    with the count behind the sums.

    Raises:
        FetchError: It is another file.
    """
    raw = path.read_bytes()
    header = b"\0BDM "
    sizes = b"\4" + struct.pack("<i", 2) + b"\4" + struct.pack("<i", mels + 1)
    head = header + sizes
    expected = len(head) + 2 * (mels + 1) * 8
    if raw[: len(head)] != head or len(raw) != expected:
        raise FetchError(
            f"{path.name}: found {len(raw)} bytes that begin with {raw[:5]!r}, expected Kaldi's "
            f"binary matrix of 2 x {mels + 1} doubles in {expected} bytes"
        )
    stats = np.frombuffer(raw[len(head) :], "<f8").reshape(2, mels + 1)
    count = stats[0, mels]
    if not (np.isfinite(stats).all() and count >= 1):
        raise FetchError(f"{path.name}: found a count of {count:g}, expected at least 1")
    means = stats[0, :mels] / count
    variances = np.maximum(stats[1, :mels] / count - means * means, 1e-20)
    return np.stack([means, 1.0 / np.sqrt(variances)])


def read_dictionary(path: Path, vocabulary: int) -> list[str]:
    """Read the tokens in the order of their ids.

    A line is `token id`, or a token alone; a blank line is a space, and so is `<space>`.

    Raises:
        FetchError: Ids are out of order, a token comes twice, or there are not `vocabulary` tokens.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FetchError(f"{path.name}: found {error.reason}, expected UTF-8") from error
    if lines[-1] == "":
        lines.pop()
    tokens = []
    for number, line in enumerate(lines):
        fields = line.split()
        if len(fields) > 1 and fields[1] != str(number):
            raise FetchError(
                f"{path.name}: found id {fields[1]} in line {number + 1}, expected {number}"
            )
        token = fields[0] if fields else " "
        tokens.append(" " if token == "<space>" else token)
    if len(set(tokens)) != len(tokens):
        twice = next(t for i, t in enumerate(tokens) if t in tokens[:i])
        raise FetchError(f"{path.name}: found {twice!r} twice, expected every token once")
    if len(tokens) != vocabulary:
        raise FetchError(
            f"{path.name}: found {len(tokens)} tokens, expected {vocabulary} as the checkpoint's "
            "odim; both must come from the same release"
        )
    return tokens


def _wrong(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{path.name}: found {found}, expected {expected}")
