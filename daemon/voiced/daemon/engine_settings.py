"""Settings of the recogniser, its runtimes and its model families."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from voiced.daemon.section import Section

LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


def _checked_hotword(text: str) -> str:
    from voiced.engine.hotwords import parse_hotword  # heavy, and seldom needed

    parse_hotword(text, 1.0)
    return text


HotwordText = Annotated[str, AfterValidator(_checked_hotword)]


class MindsporeLiteSettings(Section):
    """The runtime of `engine.backend = "mindspore_lite"`."""

    python: str | None = Field(
        default=None,
        description="Interpreter that runs the graph server; absent: in process where "
        "`mindspore_lite` can be imported, else what `make mindspore` made.",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|ascend(:\d+)?)$",
        description="Where graphs run: `cpu`, or a card as `ascend:0`.",
    )


class FireRedSettings(Section):
    """Bundles of the family FireRedASR; others ignore it."""

    casing: Literal["model", "upper", "lower"] = Field(
        default="model",
        description="Latin letters: as published with the model's version, 1 upper and 2 lower, or "
        "always so.",
    )
    spaces: bool = Field(
        default=True, description="A space between Mandarin and Latin words or digits."
    )
    text_steps: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], ...] = Field(
        default=(),
        description="What final texts go through, in order: `itn` (numbers as digits, needs the "
        "extra `itn`), or names that installed packages register in the entry point group "
        "`voiced.text`, such as one that punctuates.",
    )
    partials: Literal["ctc", "beam"] = Field(
        default="ctc",
        description="Partials from the CTC head where the model has one, without decoding, or "
        "decoded greedily.",
    )
    eos_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Factor of the end's log-probability, below 1 for shorter texts; absent: the "
        "bundle's, 1.",
    )
    length_penalty: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Exponent of the division by length, above 0 for longer texts; absent: the "
        "bundle's, 0.6.",
    )


class EngineSettings(Section):
    """The recogniser and its worker process."""

    model: str = Field(
        default="whisper-base",
        min_length=1,
        description="Bundle name in the model store, or the path of a bundle folder.",
    )
    backend: str = Field(
        default="onnxruntime",
        min_length=1,
        description="Runtime that executes the bundle's graphs: `onnxruntime` or `mindspore_lite`.",
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads of one graph call.")
    languages: tuple[LanguageCode, ...] = Field(
        default=("en", "zh"),
        min_length=1,
        description="Languages to choose among when a stream pins none.",
    )
    language: LanguageCode | None = Field(
        default=None,
        description="Language of streams that pin none; absent: chosen for each segment.",
    )
    beam: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="Hypotheses kept for finals; absent: as published with the model, Whisper 5, "
        "FireRedASR 3.",
    )
    n_best: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Alternatives sent with each final, best first; 0 sends none.",
    )
    max_batch: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Most segments decoded together; with graphs of fixed shapes, of one gear.",
    )
    max_queued_finals: int = Field(
        default=64,
        ge=1,
        le=100_000,
        description="Finals waiting or running at once; more are tried again until their deadline.",
    )
    hang_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="An engine call longer than this means a hung worker, which is replaced.",
    )
    hotwords: tuple[HotwordText, ...] = Field(
        default=(),
        max_length=1_000,
        description="Phrases that are likely to be said, as `Samantha Jones`, or "
        "`Samantha Jones :2.5` with a bonus of its own.",
    )
    hotwords_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with more of them, one a line; `#` begins a comment. Read again at a "
        "reload.",
    )
    hotwords_score: float = Field(
        default=2.0,
        gt=0,
        le=10,
        description="Bonus for each token of a phrase that has none of its own, added to the "
        "model's log-probability.",
    )
    mindspore_lite: MindsporeLiteSettings = MindsporeLiteSettings()
    fireredasr: FireRedSettings = FireRedSettings()


def engine_options(engine: EngineSettings, backend: str) -> dict[str, str]:
    """`EngineConfig.options`: what one backend, or one model family, alone is told."""
    return _backend_options(engine, backend) | _family_options(engine.fireredasr)


def _family_options(family: FireRedSettings) -> dict[str, str]:
    given = family.model_dump(exclude_defaults=True)
    return {f"fireredasr.{key}": _option(value) for key, value in given.items()}


def _option(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _backend_options(engine: EngineSettings, backend: str) -> dict[str, str]:
    if backend != "mindspore_lite":
        return {}
    lite = engine.mindspore_lite
    python = {} if lite.python is None else {"mindspore_lite.python": lite.python}
    return {"mindspore_lite.device": lite.device, **python}
