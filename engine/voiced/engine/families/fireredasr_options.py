"""What the settings say about the family, as it reaches the engine: plain texts by key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from voiced.engine.families.fireredasr_text import Casing


@dataclass(frozen=True, slots=True)
class FireRedOptions:
    """`EngineConfig.options` of the family; a key begins with `fireredasr.`."""

    casing: Casing = Casing.MODEL
    spaces: bool = True
    steps: tuple[str, ...] = ()
    eos_penalty: float | None = None
    """None: the bundle's."""
    length_penalty: float | None = None
    partials: str = "ctc"
    """`ctc` reads partials off the CTC head where there is one; `beam` decodes them greedily."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> FireRedOptions:
        """Read what the settings gave; other keys are somebody else's."""
        own = {
            key.removeprefix("fireredasr."): value
            for key, value in options.items()
            if key.startswith("fireredasr.")
        }

        def number(key: str) -> float | None:
            return float(own[key]) if own.get(key) else None

        return cls(
            casing=Casing(own.get("casing", Casing.MODEL)),
            spaces=own.get("spaces", "1") == "1",
            steps=tuple(filter(None, own.get("text_steps", "").split(","))),
            eos_penalty=number("eos_penalty"),
            length_penalty=number("length_penalty"),
            partials=own.get("partials", "ctc"),
        )
