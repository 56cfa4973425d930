"""What happens to a model's raw text before anybody reads it.

A model family brings its own first steps (joining tokens, casing, spaces). What follows is a list
of `TextPolicy`s chosen in the settings: `itn` comes with voiced, others from packages that register
in the entry point group `voiced.text`. They see final texts only: a partial's words must stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

from voiced.engine.errors import TextPolicyUnavailable

GROUP = "voiced.text"
ITN = "itn"


@functools.cache
def chinese_converter(name: str) -> Any:
    """Between scripts: `t2s` to simplified characters, `s2t` to traditional ones."""
    from opencc import OpenCC

    return OpenCC(name)


class TextPolicy(Protocol):
    """One step: a text and its language (ISO 639) in, the text out. Never raises."""

    def __call__(self, text: str, language: str) -> str: ...


def load_policy(names: Sequence[str]) -> TextPolicy:
    """Return the named steps, one after another.

    Raises:
        TextPolicyUnavailable: There is no such step, or what it needs is not installed.
    """
    steps = [_load(name) for name in names]

    def run(text: str, language: str) -> str:
        return functools.reduce(lambda done, step: step(done, language), steps, text)

    return run


def _load(name: str) -> TextPolicy:
    if name == ITN:
        return InverseNormaliser()
    found = {each.name: each for each in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({ITN, *found}))
        raise TextPolicyUnavailable(
            f"no text step {name!r}; expected one of {known}, or a package that registers it in "
            f"the entry point group {GROUP}"
        )
    try:
        return cast(TextPolicy, found[name].load()())
    except ImportError as error:
        raise TextPolicyUnavailable(
            f"text step {name!r} cannot be loaded: {error}; install what its package needs"
        ) from error


class InverseNormaliser:
    """Writes spoken numbers, dates and amounts as digits, with the grammars of `wetext`."""

    def __init__(self) -> None:
        try:
            from wetext import Normalizer
        except ImportError as error:
            raise TextPolicyUnavailable(
                f"text step {ITN!r} needs the package wetext ({error}); install voiced[itn]"
            ) from error
        make = cast(Callable[..., Any], Normalizer)
        self._rules = {code: make(lang=code, operator="itn") for code in ("zh", "en")}
        for code in self._rules:
            self("1", code)  # the grammars are read at the first use

    def __call__(self, text: str, language: str) -> str:
        """Rewrite the text; a language without grammars keeps it. Upper case stays upper case."""
        rules = self._rules.get(language)
        if rules is None or not text:
            return text
        if text.isupper():  # the English grammars know lower case only
            return str(rules.normalize(text.lower())).upper()
        return str(rules.normalize(text))
