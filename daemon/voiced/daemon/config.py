"""Typed settings: defaults < TOML file < environment < flags, every problem reported at once.

The models below are the one list of keys; `docs/configuration.md` shows the same list and a test
compares the two. A section may have sections of its own (`[engine.mindspore_lite]`). A key's
environment name is `VOICED_<SECTION>_<KEY>` in capitals, its flag form `--set section.key=value`.
Text from the environment and from flags is read as the key's type; a list is separated by commas,
and an empty text means "none" where a key may be absent.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from voiced.daemon.errors import DaemonError
from voiced.daemon.journal_settings import JournalSettings
from voiced.daemon.section import Section as _Section
from voiced.daemon.security_settings import ClientLimits, CurveSettings, TlsSettings, TotalLimits

SYSTEM_FILE = Path("/etc/voiced/voiced.toml")

OTHER_VARIABLES = frozenset(
    {
        "VOICED_CONFIG",
        "VOICED_DEBUG",
        "VOICED_MODEL_DIR",
        "VOICED_MSLITE_PYTHON",
        "VOICED_PYTHON",
        "VOICED_REQUIRE_BOOT",
        "VOICED_REQUIRE_DEVICE",
        "VOICED_REQUIRE_MODEL",
        "VOICED_REQUIRE_MSLITE",
        "VOICED_REQUIRE_NETNS",
        "VOICED_REQUIRE_SPEECH",
        "VOICED_TEST_DATA",
    }
)
"""Names that begin with `VOICED_` and are no settings."""

PLUGINS_SECTION = "plugins"
"""`[plugins.NAME]` of the file holds a plugin's options; the plugin checks them itself."""

Endpoint = Annotated[str, Field(pattern=r"^(tcp://[^\s:]+:(\d+|\*)|ipc://\S+)$")]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


def _checked_hotword(text: str) -> str:
    from voiced.engine.hotwords import parse_hotword  # heavy, and seldom needed

    parse_hotword(text, 1.0)
    return text


HotwordText = Annotated[str, AfterValidator(_checked_hotword)]


class ServerSettings(_Section):
    """The HTTP and WebSocket port."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8765, ge=0, le=65_535, description="TCP port; 0 lets the system choose."
    )
    unix_socket: str | None = Field(
        default=None,
        pattern=r"^/\S+$",
        description="Path of a Unix socket to listen on as well; absent: none.",
    )
    unix_socket_mode: str = Field(
        default="0660",
        pattern=r"^0?[0-7]{3}$",
        description="Its permissions, octal.",
    )
    max_streams: int = Field(
        default=64, ge=1, le=10_000, description="Streams at once; the next one is refused."
    )
    max_message_bytes: int = Field(
        default=262_144, ge=1_024, le=16_777_216, description="Largest WebSocket message accepted."
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Web pages (Origin headers) that may connect besides those of loopback hosts; "
        '"*" allows every page. Clients that send no Origin are always allowed.',
    )
    start_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="A connection without `start` is closed after this long.",
    )
    idle_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="A stream without audio is closed after this long.",
    )
    handshake_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="For TLS and the HTTP request to be complete.",
    )
    keepalive_s: float = Field(
        default=20.0,
        ge=3,
        le=3_600,
        description="A peer that cannot be reached for about this long is cut.",
    )
    tokens: str | None = Field(
        default=None,
        min_length=1,
        description="File of bearer tokens, written by `voiced keys token add`; where it is set, "
        "every client needs one. Read again when it changes.",
    )
    status_text: bool = Field(
        default=False,
        description="Whether `voiced status` may show what people say.",
    )
    insecure: bool = Field(
        default=False,
        description="Whether addresses beyond this machine may be listened on without TLS, "
        "tokens or CURVE.",
    )
    tls: TlsSettings = TlsSettings()


class BusSettings(_Section):
    """The ZeroMQ bus."""

    endpoint: Endpoint = Field(
        default="tcp://127.0.0.1:8766", description="Where messages are published (PUB, bound)."
    )
    ingest: Endpoint = Field(
        default="tcp://127.0.0.1:8767", description="Where plugins hand in messages (PULL, bound)."
    )
    replay: Endpoint = Field(
        default="tcp://127.0.0.1:8768",
        description="Where subscribers ask for what they missed (ROUTER, bound while a journal is "
        "kept).",
    )
    eager: bool = Field(
        default=False,
        description="Whether `eager_final` and `resumed` are published: texts before it is certain "
        "that the segment ends.",
    )
    curve: CurveSettings = CurveSettings()


class MindsporeLiteSettings(_Section):
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


class FireRedSettings(_Section):
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


class EngineSettings(_Section):
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


class VadSettings(_Section):
    """Where speech begins and ends; a stream may choose its own in `start.vad`."""

    kind: Literal["cascade", "silero", "webrtc"] = Field(
        default="cascade",
        description="Detector: webrtc wakes silero (cascade), or one of them alone.",
    )
    end_ms: int = Field(default=600, ge=100, le=5_000, description="Silence that ends a segment.")
    end_min_ms: int = Field(
        default=300,
        ge=100,
        le=5_000,
        description="The same where an intent was found in the text already.",
    )
    end_sentence_ms: int = Field(
        default=600,
        ge=100,
        le=5_000,
        description="The same where the text ends in a full stop.",
    )
    end_max_ms: int = Field(
        default=900,
        ge=100,
        le=5_000,
        description="The same where the text ends in a hesitation.",
    )
    eager_ms: int = Field(
        default=200,
        ge=0,
        le=5_000,
        description="Silence after which the final is begun, before the end is certain; 0: never.",
    )
    pad_ms: int = Field(
        default=500, ge=0, le=2_000, description="Audio kept on both sides of the speech."
    )
    min_speech_ms: int = Field(
        default=200, ge=0, le=1_000, description="Segments with less speech than this are dropped."
    )
    max_segment_s: float = Field(
        default=16.0, ge=2, le=28, description="Longer speech is cut at its quietest point."
    )
    partial_hop_ms: int = Field(
        default=400, ge=100, le=10_000, description="Speech between two partial results."
    )
    first_partial_ms: int = Field(
        default=300, ge=100, le=10_000, description="Speech before the first partial result."
    )


class MicrophoneSettings(_Section):
    """A local sound device as a stream like any other."""

    enabled: bool = Field(default=False, description="Whether the daemon opens the device.")
    device: str | None = Field(
        default=None,
        description="Part of the device's name, or its number; absent: the default device.",
    )
    rate_hz: int | None = Field(
        default=None,
        ge=4_000,
        le=192_000,
        description="Sample rate to open it with; absent: 16 kHz, or the device's own.",
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Channels to open it with, mixed to mono; absent: 1, or all it has.",
    )
    language: LanguageCode | None = Field(
        default=None, description="Language spoken at this device; absent: `engine.language`."
    )
    stream: str = Field(
        default="microphone",
        pattern=r"^(?:[A-Za-z0-9._:-]{2,64}|[A-Za-z0-9._:])$",
        description="Name of its stream.",
    )


class LimitsSettings(_Section):
    """Deadlines of the whole daemon."""

    drain_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="After SIGTERM: time to finish and publish what was heard.",
    )
    max_backlog_s: float = Field(
        default=30.0,
        ge=1,
        le=3_600,
        description="Speech of one stream closed but not answered above which its source is "
        "slowed.",
    )
    final_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3_600,
        description="A final later than this after its segment's end fails with `deadline`.",
    )
    partial_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="A partial that waited longer is not made."
    )
    busy_age_s: float = Field(
        default=3.0,
        gt=0,
        le=3_600,
        description="New streams are refused while a final has been waiting longer than this.",
    )
    resume_s: float = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="How long a resumable stream waits for a client whose connection was lost.",
    )
    ready_timeout_s: float = Field(
        default=120.0, gt=0, le=3_600, description="The engine must be warmed within this time."
    )
    client: ClientLimits = ClientLimits()
    total: TotalLimits = TotalLimits()


class TracingSettings(_Section):
    """OpenTelemetry traces of segments; needs the extra `voiced[otel]`."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="Where traces go (OTLP over HTTP), e.g. `http://127.0.0.1:4318/v1/traces`; "
        "absent: none are made.",
    )


class LoggingSettings(_Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level written."
    )
    include_text: bool = Field(
        default=False, description="Whether debug lines may contain what people said."
    )


class Settings(_Section):
    """Everything that can be configured."""

    server: ServerSettings = ServerSettings()
    bus: BusSettings = BusSettings()
    engine: EngineSettings = EngineSettings()
    vad: VadSettings = VadSettings()
    microphone: MicrophoneSettings = MicrophoneSettings()
    journal: JournalSettings = JournalSettings()
    limits: LimitsSettings = LimitsSettings()
    tracing: TracingSettings = TracingSettings()
    logging: LoggingSettings = LoggingSettings()


@dataclass(frozen=True, slots=True)
class Key:
    """One setting as people see it."""

    name: str
    """`section.key`."""
    field: FieldInfo

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "VOICED_" + self.name.replace(".", "_").upper()

    @property
    def is_optional(self) -> bool:
        """Whether "none" is a value of this key."""
        return type(None) in get_args(self.field.annotation)


def _section(annotation: Any) -> type[_Section] | None:
    """The section that a field holds; None for a setting."""
    is_section = isinstance(annotation, type) and issubclass(annotation, _Section)
    return annotation if is_section else None


def _all_keys(model: type[_Section], prefix: str = "") -> Iterator[Key]:
    for name, inner in model.model_fields.items():
        if section := _section(inner.annotation):
            yield from _all_keys(section, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, inner)


KEYS: dict[str, Key] = {key.name: key for key in _all_keys(Settings)}
"""Every setting by its dotted name, in the order of the documentation."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration."""

    source: str
    """The file, `environment` or the flag."""
    key: str
    """Dotted name; empty when the whole source is unreadable."""
    rule: str
    """What was expected."""
    value: str = ""
    """What was found, as written."""
    nearest: str | None = None
    """Known name that was probably meant."""

    def __str__(self) -> str:
        place = f"{self.source}: {self.key}" if self.key else self.source
        found = f" = {self.value}" if self.value else ""
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"{place}{found}: {self.rule}{hint}"


class ConfigError(DaemonError):
    """The configuration cannot be used; `problems` has all reasons."""

    code = "config"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the configuration"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and how they came about."""

    settings: Settings
    origins: Mapping[str, str]
    """For every dotted name: `default`, a file's path, an environment variable or a flag."""
    file: Path | None
    """The configuration file that was read."""
    warnings: tuple[Problem, ...] = ()
    """Things that do no harm and are probably not meant."""


@dataclass(slots=True)
class _Gathered:
    """Raw values of all sources, later ones on top of earlier ones."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def put(self, name: str, value: Any, origin: str) -> None:
        self.values[name] = value
        self.origins[name] = origin


def find_file(
    explicit: Path | None, environment: Mapping[str, str], *, system_file: Path = SYSTEM_FILE
) -> Path | None:
    """Choose the configuration file: `--config`, `VOICED_CONFIG`, or the first that exists.

    A file that was named need not exist yet: reading it then reports the problem.
    """
    if explicit is not None:
        return explicit
    if named := environment.get("VOICED_CONFIG"):
        return Path(named)
    home = Path(environment.get("HOME", "~")).expanduser()
    base = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    for candidate in (system_file, base / "voiced" / "voiced.toml"):
        if candidate.is_file():
            return candidate
    return None


def load(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    system_file: Path = SYSTEM_FILE,
) -> Loaded:
    """Read every source and check the result.

    Args:
        file: The file given with `--config`.
        environment: Defaults to the process's own.
        flags: Dotted name to (the flag as typed, its value); a value that is a `str` is read as
            the key's type.
        system_file: Where the service's file is.

    Raises:
        ConfigError: With every problem of every source.
    """
    environment = os.environ if environment is None else environment
    gathered = _Gathered()
    chosen = find_file(file, environment, system_file=system_file)
    if chosen is not None:
        _read_file(chosen, gathered)
    warnings = _read_environment(environment, gathered)
    for name, (flag, value) in (flags or {}).items():
        if name in KEYS:
            gathered.put(name, _from_text(KEYS[name], value), flag)
        else:
            gathered.problems.append(_unknown(flag, name, value))
    settings = _validate(gathered)
    if settings is None or gathered.problems:
        raise ConfigError(gathered.problems)
    origins = {name: gathered.origins.get(name, "default") for name in KEYS}
    return Loaded(settings, origins, chosen, tuple(warnings))


def value_of(settings: Settings, name: str) -> Any:
    """The effective value of a dotted name."""
    return functools.reduce(getattr, name.split("."), settings)


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


def stream_url(server: ServerSettings) -> str:
    """Where a client on this machine finds the server."""
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::", "") else server.host
    scheme = "ws" if server.tls.certificate is None else "wss"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}/v1/stream"


def status_url(server: ServerSettings) -> str:
    """Where a client on this machine asks how the daemon is."""
    return stream_url(server).replace("ws", "http", 1).replace("/v1/stream", "/v1/status")


def admin_url(server: ServerSettings) -> str:
    """Where an admin on this machine tells the daemon what to do."""
    return stream_url(server).replace("/v1/stream", "/v1/admin")


def connectable(endpoint: str) -> str:
    """Turn an endpoint that is bound on all addresses into one to connect to."""
    return re.sub(r"^tcp://(\*|0\.0\.0\.0):", "tcp://127.0.0.1:", endpoint)


def parse_assignment(text: str) -> tuple[str, str]:
    """Split `section.key=value` as given to `--set`.

    Raises:
        ConfigError: The text has another form.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError([Problem("--set", text, "must have the form section.key=value")])
    return name.strip(), value.strip()


# ---- sources ---------------------------------------------------------------------------------


def _read_file(path: Path, gathered: _Gathered) -> None:
    source = str(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        gathered.problems.append(Problem(source, "", f"cannot be read: {reason}"))
        return
    except UnicodeDecodeError as error:
        rule = f"must be UTF-8 text; byte {error.start} is not"
        gathered.problems.append(Problem(source, "", rule))
        return
    except RecursionError:
        gathered.problems.append(Problem(source, "", "is nested too deeply"))
        return
    except tomllib.TOMLDecodeError as error:
        gathered.problems.append(Problem(source, "", f"is not TOML: {_lower_first(str(error))}"))
        return
    for section, table in document.items():
        if section == PLUGINS_SECTION and isinstance(table, dict):
            continue
        if section not in Settings.model_fields:
            gathered.problems.append(_unknown_section(source, section, table))
        elif not isinstance(table, dict):
            rule = f"must be a table: write [{section}] and its keys below"
            gathered.problems.append(Problem(source, section, rule, show(table)))
        else:
            _read_table(source, section, table, gathered)


def _read_table(source: str, section: str, table: Mapping[str, Any], gathered: _Gathered) -> None:
    for key, value in table.items():
        name = f"{section}.{key}"
        if isinstance(value, dict) and any(k.startswith(f"{name}.") for k in KEYS):
            _read_table(source, name, value, gathered)
            continue
        if name not in KEYS:
            gathered.problems.append(_unknown(source, name, value))
            continue
        if value == "" and KEYS[name].is_optional:
            value = None
        gathered.put(name, tuple(value) if isinstance(value, list) else value, source)


def _read_environment(environment: Mapping[str, str], gathered: _Gathered) -> list[Problem]:
    """Take the known variables; return warnings for the unknown ones."""
    by_variable = {key.variable: key for key in KEYS.values()}
    warnings = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith("VOICED_") or variable in OTHER_VARIABLES:
            continue
        if key := by_variable.get(variable):
            gathered.put(key.name, _from_text(key, text), variable)
        else:
            near = _nearest(variable, [*by_variable, *OTHER_VARIABLES])
            warnings.append(Problem("environment", variable, "unknown, ignored", nearest=near))
    return warnings


def _from_text(key: Key, value: Any) -> Any:
    """Read text as the key's type; what does not fit stays text and fails the validation."""
    if not isinstance(value, str):
        return value
    if key.is_optional and value == "":
        return None
    annotation: Any = key.field.annotation
    if get_origin(annotation) is tuple:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    reader: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return reader.validate_strings(value)
    except ValidationError:
        return value


# ---- validation ------------------------------------------------------------------------------


def _validate(gathered: _Gathered) -> Settings | None:
    tree: dict[str, Any] = {}
    for name, value in gathered.values.items():
        *sections, key = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[key] = value
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        gathered.problems.extend(_explain(error, gathered.origins))
        return None
    for first, second in itertools.combinations(("endpoint", "ingest", "replay"), 2):
        taken, wanted = getattr(settings.bus, first), getattr(settings.bus, second)
        if taken == wanted and not wanted.endswith((":0", ":*")):
            named = (f"bus.{second}", f"bus.{first}")
            origin = next(gathered.origins[name] for name in named if name in gathered.origins)
            rule = f"must differ from bus.{first}"
            gathered.problems.append(Problem(origin, f"bus.{second}", rule, show(wanted)))
    return settings


def _explain(error: ValidationError, origins: Mapping[str, str]) -> Iterator[Problem]:
    details = error.errors(include_url=False)
    places = [".".join(str(part) for part in detail["loc"]) for detail in details]
    for detail, shown in zip(details, places, strict=True):
        if any(place.startswith(f"{shown}.") for place in places):
            continue  # "too short" because its only items are bad, which are reported themselves
        name = next(name for name in KEYS if f"{shown}.".startswith(f"{name}."))
        rule, found = _rule(detail["msg"]), show(detail["input"])
        yield Problem(origins[name], shown, rule, found)


def _rule(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return re.sub(r"^\w+ should (be|match|have)", r"must \1", _lower_first(message))


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def show(value: Any) -> str:
    """Write a value as TOML would."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return "none" if value is None else str(value)


def _unknown(source: str, name: str, value: Any) -> Problem:
    section, _, key = name.partition(".")
    near = _nearest(name, KEYS)
    if section in Settings.model_fields:  # first among its neighbours, then the same key elsewhere
        here = [k for k in KEYS if k.startswith(f"{section}.")]
        elsewhere = [k for k in KEYS if k.endswith(f".{key}")]
        near = _nearest(name, here, cutoff=0.8) or next(iter(elsewhere), near)
    return Problem(source, name, "unknown key", show(value), near)


def _unknown_section(source: str, section: str, table: Any) -> Problem:
    near = _nearest(section, Settings.model_fields)
    if isinstance(table, dict):
        shown = f"[{near}]" if near else None
        return Problem(source, f"[{section}]", "unknown section", nearest=shown)
    inside = [name for name in KEYS if name.endswith(f".{section}")]
    return Problem(source, section, "unknown key", show(table), inside[0] if inside else near)


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)
