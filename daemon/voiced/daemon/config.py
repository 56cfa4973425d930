"""Where settings come from: defaults < TOML file < environment < flags, every problem at once.

The keys are those of `settings.py`. A key's environment name is `VOICED_<SECTION>_<KEY>` in
capitals, its flag form `--set section.key=value`. Text from the environment and from flags is read
as the key's type; a list is separated by commas, and an empty text means "none" where a key may be
absent.
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
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from voiced.daemon.errors import DaemonError
from voiced.daemon.section import Section
from voiced.daemon.settings import Settings

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


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field holds; None for a setting."""
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_section else None


def _all_keys(model: type[Section], prefix: str = "") -> Iterator[Key]:
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


def parse_assignment(text: str) -> tuple[str, str]:
    """Split `section.key=value` as given to `--set`.

    Raises:
        ConfigError: The text has another form.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError([Problem("--set", text, "must have the form section.key=value")])
    return name.strip(), value.strip()


def flags_of(assignments: Iterable[str], flag: str) -> dict[str, tuple[str, str]]:
    """Read what `flag` gave as `section.key=value`, for `load`; the last of a name counts.

    Raises:
        ConfigError: One has another form.
    """
    return {name: (flag, value) for name, value in map(parse_assignment, assignments)}


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
