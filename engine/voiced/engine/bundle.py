"""The bundle: one model in one folder, and the check that it is exactly what was built.

A bundle is flat: `manifest.json` plus the files it lists, nothing else. The manifest is the
contract between the offline build and the running engine; `docs/bundle-format.md` explains every
field. This module knows the fields that all families share; what stands in `model`, `frontend`,
`tokens` and `tail` belongs to the family that reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from voiced.engine.errors import BundleError
from voiced.engine.types import Gear

FORMAT = 2
"""Version of the manifest that this code reads and writes."""

MANIFEST_NAME = "manifest.json"

PORTABLE_HINT = (
    "int8 graphs cannot be converted: build and convert a portable bundle, e.g. "
    "`voiced model build whisper-base-fp32`, `voiced model convert whisper-base-fp32`"
)

Family = Literal["whisper", "fireredasr", "vad"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights came from."""

    content_sha256: str
    """Hash of the weights themselves, independent of who packed them."""
    packages: tuple[str, ...]
    """`name==version` of the packages read, or a single `local` for files already on disk."""
    licence: str
    """SPDX identifier of the weights' licence."""


class GearShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One compiled input shape, see `voiced.engine.types.Gear`."""

    frames: int
    batch: int = 1


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files of one known question and its answer."""

    input: str
    output: str


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one file of the bundle must be."""

    sha256: str
    bytes: int


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an artifact's answers compare with those of the graph that it was converted from."""

    samples: int
    """Recorded calls that were compared."""
    max_abs_diff: dict[str, float]
    """Largest difference of each output with fractions."""
    ids_equal: dict[str, bool]
    """Whether each output of whole numbers (tokens, rows) was the same throughout."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph converted for one target and one set of shapes."""

    role: str
    """The graph's role in `Manifest.graphs`."""
    axes: dict[str, int]
    """The graph's symbolic axes and what they were fixed to."""
    file: str
    options: dict[str, str]
    """What the converter was told."""
    parity: Parity


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bundle's graphs as another runtime runs them."""

    library: str
    """Name and version of the converter."""
    gears: tuple[GearShape, ...]
    """Those of the bundle's gears that the artifacts serve."""
    artifacts: tuple[Artifact, ...]
    log: str
    """File: what the converter wrote."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest.json`. The defaults are for builders; a manifest on disk spells out every field."""

    format: int = FORMAT
    name: str
    family: Family
    created_by: str = ""
    """Program and version that built the bundle."""
    source: Source = Source(content_sha256="", packages=(), licence="")
    graphs: dict[str, str] = {}
    """Role of a graph, e.g. `prefill` or `step`, to its file."""
    model: dict[str, Any] = {}
    """Dimensions of the network."""
    frontend: dict[str, Any] = {}
    """Feature extraction."""
    gears: tuple[GearShape, ...] = ()
    """Compiled input shapes, at least one; only a `vad` bundle has none."""
    tokens: dict[str, Any] = {}
    """Token ids and the tokenizer."""
    tail: dict[str, Any] | None = None
    """How speech is continued behind the end of a gear; None when the family needs nothing."""
    golden: Golden | None = None
    quantisation: str = "none"
    targets: dict[str, Target] = {}
    """Target of `voiced model convert` to what it made. The one field that may be absent on disk:
    bundles that were never converted have none."""
    files: dict[str, FileEntry] = {}
    """Every file of the bundle but the manifest. Filled in when the bundle is packed."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder that passed `open`."""

    root: Path
    manifest: Manifest
    manifest_sha256: str

    @classmethod
    def open(cls, path: Path, *, verify: Literal["hash", "size"] = "hash") -> Bundle:
        """Read and check the bundle in folder `path`.

        Args:
            path: The folder that holds `manifest.json`.
            verify: `hash` reads every byte (about 0.1 s per 100 MB); `size` only compares names
                and sizes, which catches missing, extra and truncated files.

        Raises:
            BundleError: Anything is not as the manifest says, or the manifest itself is bad.
        """
        next_step = how_to_rebuild(path.name)
        if not path.is_dir():
            raise BundleError(
                path,
                found="no such folder" if not path.exists() else "a file",
                expected=f"a bundle folder with {MANIFEST_NAME}",
                next_step=f"get it with `voiced model pull {path.name}`",
            )
        manifest_path = path / MANIFEST_NAME
        try:
            raw = manifest_path.read_bytes()
        except FileNotFoundError:
            raise BundleError(
                manifest_path, found="no such file", expected="a manifest", next_step=next_step
            ) from None
        except OSError as error:
            raise _unreadable(manifest_path, error, next_step) from error
        manifest = parse_manifest(manifest_path, raw, next_step)
        next_step = how_to_rebuild(path.name, manifest.family)
        _check_names(manifest_path, manifest, next_step)
        _check_files(path, manifest, next_step, hashed=verify == "hash")
        return cls(path, manifest, hashlib.sha256(raw).hexdigest())

    @property
    def id(self) -> str:
        """Name and short hash of the manifest, e.g. `whisper-base@3f2a9c1d`."""
        return f"{self.manifest.name}@{self.manifest_sha256[:8]}"

    @property
    def gears(self) -> tuple[Gear, ...]:
        """The compiled input shapes, in the manifest's order."""
        return tuple(Gear(frames=g.frames, batch=g.batch) for g in self.manifest.gears)

    def narrowed(self, target: str) -> Bundle:
        """Return the bundle with the gears that were converted for a target.

        Raises:
            BundleError: None were.
        """
        gears = self.target(target).gears
        return replace(self, manifest=msgspec.structs.replace(self.manifest, gears=gears))

    def path(self, role: str) -> Path:
        """Return the file of the graph with this role.

        Raises:
            BundleError: The bundle has no such graph.
        """
        try:
            return self.root / self.manifest.graphs[role]
        except KeyError:
            raise BundleError(
                self.root / MANIFEST_NAME,
                found=f"graphs {', '.join(sorted(self.manifest.graphs)) or 'none'}",
                expected=f"a graph with role {role!r}",
            ) from None

    def target(self, name: str) -> Target:
        """Return what the bundle was converted to for a target.

        Raises:
            BundleError: It was not.
        """
        try:
            return self.manifest.targets[name]
        except KeyError:
            have = ", ".join(sorted(self.manifest.targets))
            convert = f"`voiced model convert {self.root.name} --target {name}`"
            raise BundleError(
                self.root / MANIFEST_NAME,
                found=f"artifacts for {have} only" if have else "no converted artifacts",
                expected=f"some for {name}",
                next_step=PORTABLE_HINT if self.is_quantised else f"convert it: {convert}",
            ) from None

    @property
    def is_quantised(self) -> bool:
        """Its graphs use integer arithmetic, which no converter takes."""
        return self.manifest.quantisation.startswith("int8")

    def artifact(self, target: str, role: str, axes: Mapping[str, int]) -> Path:
        """Return the artifact of a target that has a role and these axes.

        Raises:
            BundleError: There is none.
        """
        artifacts = [a for a in self.target(target).artifacts if a.role == role]
        for artifact in artifacts:
            if all(axes.get(axis) == size for axis, size in artifact.axes.items()):
                return self.root / artifact.file
        have = "; ".join(_show_axes(a.axes) for a in artifacts)
        raise BundleError(
            self.root / MANIFEST_NAME,
            found=f"{role} for {target} with {have}" if have else f"no {role} for {target}",
            expected=f"one with {_show_axes(axes)}",
            next_step=f"convert the gear too: `voiced model convert {self.root.name} "
            f"--target {target} --gears ...`",
        )

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists.

        Raises:
            BundleError: The manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(
                self.root / MANIFEST_NAME,
                found=f"files {', '.join(sorted(self.manifest.files))}",
                expected=f"a file {name!r}",
            )
        return self.root / name


def how_to_rebuild(name: str, family: str = "") -> str:
    """Say how a bundle is made again; unknown families are those that can be had by name."""
    if family == "fireredasr":
        return (
            f"make it again with `voiced model import fireredasr DIR --name {name} --force`, DIR "
            "being the released files"
        )
    return f"rebuild it with `voiced model build {name} --force`"


def _show_axes(axes: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in axes.items())


def is_plain_name(name: str) -> bool:
    """Tell whether `name` is safe as a file or bundle name: no separator, no leading dot."""
    return _PLAIN_NAME.fullmatch(name) is not None


def sha256_of(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_consistency(path: Path, manifest: Manifest) -> None:
    """Check what a manifest says about itself: names, roles, gears. Reads no file but names `path`.

    Raises:
        BundleError: The manifest contradicts itself or names a file outside its folder.
    """
    _check_names(path, manifest, next_step="")


def parse_manifest(path: Path, raw: bytes, next_step: str = "") -> Manifest:
    """Read the content of a manifest; `path` names it in errors.

    Raises:
        BundleError: It is none of this format.
    """
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError; nesting
        raise BundleError(
            path, found=f"bad JSON ({error})", expected="a JSON object", next_step=next_step
        ) from error
    if not isinstance(fields, dict):
        raise BundleError(
            path, found="JSON that is no object", expected="a JSON object", next_step=next_step
        )
    # The version comes first: another version may well have other fields.
    version = fields.get("format")
    if type(version) is not int or version != FORMAT:
        found = f"format {version!r}" if "format" in fields else "no field 'format'"
        raise BundleError(path, found=found, expected=f"format {FORMAT}", next_step=next_step)
    required = set(Manifest.__struct_fields__) - {"targets"}
    missing = [name for name in Manifest.__struct_fields__ if name in required - set(fields)]
    if missing:
        raise BundleError(
            path,
            found=f"no field {missing[0]!r}",
            expected=f"every field of format {FORMAT}",
            next_step=next_step,
        )
    try:
        return msgspec.convert(fields, Manifest)
    except (msgspec.ValidationError, UnicodeError) as error:  # half a surrogate pair in a name
        raise BundleError(
            path,
            found=str(error)[:1].lower() + str(error)[1:],
            expected=f"a manifest of format {FORMAT}",
            next_step=next_step,
        ) from error


def _check_names(path: Path, manifest: Manifest, next_step: str) -> None:
    def refuse(found: str, expected: str) -> BundleError:
        return BundleError(path, found=found, expected=expected, next_step=next_step)

    if not is_plain_name(manifest.name):
        raise refuse(f"name {manifest.name!r}", "letters, digits, '.', '_' and '-'")
    for name, entry in manifest.files.items():
        if not is_plain_name(name) or name == MANIFEST_NAME:
            raise refuse(f"file name {name!r}", "a plain file name inside the bundle")
        if not _SHA256.fullmatch(entry.sha256) or entry.bytes < 0:
            raise refuse(f"a bad sha256 or size for {name!r}", "64 hex digits and a size")
    named = {f"graph {role!r}": name for role, name in manifest.graphs.items()}
    if manifest.golden is not None:
        named |= {"golden input": manifest.golden.input, "golden output": manifest.golden.output}
    for target, made in manifest.targets.items():
        named[f"log of target {target!r}"] = made.log
        named |= {f"artifact {a.file!r} of target {target!r}": a.file for a in made.artifacts}
    for use, name in named.items():
        if name not in manifest.files:
            raise refuse(f"{use} in {name!r}", "a file listed in 'files'")
    if not manifest.gears and manifest.family != "vad":
        raise refuse("an empty list of gears", "at least one gear")
    for gear in manifest.gears:
        if gear.frames < 1 or gear.batch < 1:
            raise refuse(f"gear {gear.batch}x{gear.frames}", "batch and frames of at least 1")


def _check_files(root: Path, manifest: Manifest, next_step: str, *, hashed: bool) -> None:
    present = {entry.name for entry in root.iterdir()} - {MANIFEST_NAME}
    for name in sorted(present - set(manifest.files)):
        raise BundleError(
            root / name,
            found="a file that the manifest does not list",
            expected="only listed files",
            next_step=next_step,
        )
    for name, entry in manifest.files.items():
        path = root / name
        if not path.is_file():
            raise BundleError(
                path,
                found="no such file" if not path.exists() else "no regular file",
                expected=f"{entry.bytes} bytes",
                next_step=next_step,
            )
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                raise BundleError(
                    path,
                    found=f"{size} bytes",
                    expected=f"{entry.bytes} bytes",
                    next_step=next_step,
                )
            if hashed and (digest := sha256_of(path)) != entry.sha256:
                raise BundleError(
                    path,
                    found=f"sha256 {digest}",
                    expected=f"sha256 {entry.sha256}",
                    next_step=next_step,
                )
        except OSError as error:
            raise _unreadable(path, error, next_step) from error


def _unreadable(path: Path, error: OSError, next_step: str) -> BundleError:
    return BundleError(
        path,
        found=f"unreadable ({error.strerror})",
        expected="a readable file",
        next_step=next_step,
    )
