"""Models of each family as the self-test asks them: one sound, one gear, the parts one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Backend, Traffic
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError
from voiced.engine.gears import GearSet
from voiced.engine.types import Gear

Float = npt.NDArray[np.float32]
Pcm = npt.NDArray[np.int16]

CANDIDATES = 5
"""First tokens that are compared."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best text of a search."""

    tokens: tuple[int, ...]
    score: float
    steps: int


class SelftestModel(Protocol):
    """One loaded bundle. A loan is the family's own: it goes from `lend` to the other calls."""

    gears: GearSet
    is_resident: bool
    """Its caches stay on the device."""

    @property
    def traffic(self) -> Traffic:
        """What the graphs have moved."""
        ...

    def features(self, pcm: Pcm, gear: Gear) -> Float:
        """What `prefill` takes."""
        ...

    def prefill_bytes(self, gear: Gear) -> int:
        """Bytes of the prefill graph's inputs at a gear."""
        ...

    def lend(self, gear: Gear) -> AbstractContextManager[Any]:
        """Lend the memory of a gear."""
        ...

    def decode(self, loan: Any, pcm: Pcm, features: Float, beam: int) -> Best:
        """Search the text of the loan's first row."""
        ...

    def first_tokens(self, loan: Any) -> tuple[Float, npt.NDArray[np.int32]]:
        """Candidates for the first token: (float32[k], int32[k]), best first."""
        ...


class _Whisper:
    def __init__(self, bundle: Bundle, backend: Backend, threads: int, beam: int) -> None:
        from voiced.engine.families.whisper_model import WhisperModel

        self._model = WhisperModel(
            bundle.root, bundle.manifest, backend, threads=threads, max_batch=1, max_beam=beam
        )
        self._language = self._model.languages[0]
        self.gears = self._model.gears
        self.is_resident = self._model.info.resident is not None
        self.lend = self._model.lend
        self.features = self._model.features

    @property
    def traffic(self) -> Traffic:
        return self._model.traffic

    def prefill_bytes(self, gear: Gear) -> int:
        return 4 * self._model.info.mels * gear.frames

    def decode(self, loan: Any, pcm: Pcm, features: Float, beam: int) -> Best:
        from voiced.engine.families.whisper_model import Utterance

        asked = [Utterance(len(pcm), self._language)]
        (found,) = self._model.decode(loan, asked, beam=beam, configured=())
        best = found.hypotheses[0]
        return Best(best.tokens, best.score, found.steps)

    def first_tokens(self, loan: Any) -> tuple[Float, npt.NDArray[np.int32]]:
        return self._model.first_tokens(loan, language=self._language, top=CANDIDATES)


class _FireRed:
    def __init__(self, bundle: Bundle, backend: Backend, threads: int, beam: int) -> None:
        from voiced.engine.families.fireredasr_model import FireRedModel

        self._model = FireRedModel(
            bundle.root, bundle.manifest, backend, threads=threads, max_batch=1, max_beam=beam
        )
        self.gears = self._model.gears
        self.is_resident = self._model.info.resident is not None
        self.lend = self._model.lend

    @property
    def traffic(self) -> Traffic:
        return self._model.traffic

    def features(self, pcm: Pcm, gear: Gear) -> Float:
        return self._model.features(pcm)[: gear.frames]

    def prefill_bytes(self, gear: Gear) -> int:
        info = self._model.info  # features and the mask of encoder frames, float32
        return 4 * (info.mels * info.input_frames(gear.frames) + info.encoder_frames(gear.frames))

    def decode(self, loan: Any, pcm: Pcm, features: Float, beam: int) -> Best:
        (found,) = self._model.decode(loan, [len(features)], beam=beam)
        best = found.hypotheses[0]
        return Best(best.tokens, best.score, found.steps)

    def first_tokens(self, loan: Any) -> tuple[Float, npt.NDArray[np.int32]]:
        return self._model.first_tokens(loan, top=CANDIDATES)


_FAMILIES: dict[str, Callable[[Bundle, Backend, int, int], SelftestModel]] = {
    "whisper": _Whisper,
    "fireredasr": _FireRed,
}


def load_model(bundle: Bundle, backend: Backend, *, threads: int, beam: int) -> SelftestModel:
    """Load a bundle for the self-test.

    Raises:
        BundleError: It is no speech recognition model, or not for this backend.
    """
    make = _FAMILIES.get(bundle.manifest.family)
    if make is None:
        raise BundleError(
            bundle.root,
            found=f"family {bundle.manifest.family}",
            expected=f"one that the self-test knows: {', '.join(_FAMILIES)}",
        )
    return make(bundle, backend, threads, beam)
