"""Every parser that takes bytes from outside, with what it promises."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tests.fuzz import disk
from tests.fuzz.mutate import Target
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeaderValue
from websockets.http11 import Request

from voiced.audio.errors import MediaError
from voiced.audio.frames import Encoding, Segment, StreamFormat
from voiced.audio.intake import Intake
from voiced.audio.sources.media import decode_file
from voiced.daemon import admin, config, curve, spool, tokens, wire
from voiced.daemon.access import presented
from voiced.daemon.bus import read_intent
from voiced.daemon.config import ConfigError
from voiced.daemon.curve import AllowList, CurveServer, KeyPair
from voiced.daemon.events import wanted_topics
from voiced.daemon.exposure import is_local_endpoint
from voiced.daemon.routes import is_allowed_origin
from voiced.daemon.spool import Heard
from voiced.daemon.stream_protocol import Audio, StreamProtocol, Violation
from voiced.daemon.watched import Watched
from voiced.engine import bundle, ipc
from voiced.engine.build import ct2
from voiced.engine.errors import BundleError, FetchError
from voiced.engine.hotwords import MAX_CHARS, MAX_SCORE, parse_hotword
from voiced.engine.types import EngineConfig, EngineLoad, RequestKind
from voiced.engine.types import Request as EngineRequest

RAW_KEY = bytes(range(32))
KEY = "0" * 40


def read_client(data: bytes) -> object:
    message = wire.decode_client(data)
    assert wire.decode_client(wire.encode(message)) == message
    return message


def read_server(data: bytes) -> object:
    message = wire.decode_server(data)
    encoded = wire.encode(message)
    assert wire.encode(wire.decode_server(encoded)) == encoded
    wire.topic(message)
    return message


def talk(data: bytes) -> object:
    """Messages one after another: each begins with a byte that says whether it is text."""
    protocol = StreamProtocol()
    said: list[str] = []
    for part in data.split(b"\xfe"):
        message: bytes | str = part[1:]
        if part[:1] == b"t":
            message = part[1:].decode("utf-8", "surrogateescape")
        was_over = protocol.is_over
        action = protocol.receive(message)
        assert not (was_over and action is not None)
        assert not (isinstance(action, Violation) and not protocol.is_over)
        if isinstance(action, Audio):
            assert "Start" in said or "Resume" in said
        said.append(type(action).__name__)
    return " ".join(said[:6])


def read_hotword(data: bytes) -> object:
    hotword = parse_hotword(data.decode("utf-8", "surrogateescape"), 1.5)
    assert 0 < len(hotword.phrase) <= MAX_CHARS
    assert 0 < hotword.score <= MAX_SCORE
    return hotword


def read_plugin(data: bytes) -> object:
    intent = read_intent(data.split(b"\xfe"))
    again = wire.decode_server(wire.encode(intent))
    assert isinstance(again, wire.Intent)
    return intent


def read_host(data: bytes) -> object:
    message = ipc.decode_from_host(data)
    if isinstance(message, ipc.Submit):
        ipc.request_of(message, 0)
    ipc.decode_from_host(ipc.encode(message))
    return message


def read_worker(data: bytes) -> object:
    message = ipc.decode_from_worker(data)
    if isinstance(message, ipc.Failure):
        str(ipc.error_of(message))
    ipc.encode(message)
    return message


def read_pcm(data: bytes) -> object:
    """The first bytes choose the format and the blocks; the rest is sound."""
    head = data[:4].ljust(4, b"\0")
    encodings = list(Encoding)
    rates = (4_000, 8_000, 16_000, 44_100, 192_000)
    audio_format = StreamFormat(
        encodings[head[0] % len(encodings)], rates[head[1] % len(rates)], head[2] % 4 + 1
    )
    intake = Intake(audio_format)
    block = head[3] + 1
    end = 0
    for start in range(4, len(data), block):
        intake.hold(data[start : start + block])
        if frame := intake.feed():
            end = _check(frame.samples, frame.start_sample, end)
    if frame := intake.finish():
        end = _check(frame.samples, frame.start_sample, end)
    assert end == intake.end_sample
    return f"{audio_format} {end.bit_length()}"


def _check(samples: Any, start: int, end: int) -> int:
    assert start == end
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert float(np.abs(samples).max(initial=0.0)) <= 4.0  # a resampler overshoots a little
    return start + len(samples)


class _MemoryFile:
    """A file without a disk, for parsers that take a path."""

    def __init__(self) -> None:
        self._number = os.memfd_create("fuzz")
        self.path = Path(f"/proc/self/fd/{self._number}")

    def write(self, data: bytes) -> Path:
        os.ftruncate(self._number, 0)
        os.pwrite(self._number, data, 0)
        return self.path


def media_reader() -> Callable[[bytes], object]:
    file = _MemoryFile()

    def read(data: bytes) -> object:
        samples = 0
        for block in decode_file(file.write(data), on_damage=lambda text: None):
            assert block.dtype == np.float32
            assert np.isfinite(block).all()
            samples += len(block)
            if samples > 16_000 * 600:
                break  # a small file may hold hours of silence: the reader stops when it likes
        return f"{samples.bit_length()}"

    return read


def read_manifest(data: bytes) -> object:
    path = Path("manifest.json")
    manifest = bundle.parse_manifest(path, data)
    bundle.check_consistency(path, manifest)
    return manifest


def config_reader() -> Callable[[bytes], object]:
    file = _MemoryFile()

    def read(data: bytes) -> object:
        try:
            loaded = config.load(file=file.write(data), environment={})
        except ConfigError as error:
            return _refusal(error)
        for name in config.KEYS:
            config.show(config.value_of(loaded.settings, name))
        return "loaded"

    return read


def _refusal(error: ConfigError) -> str:
    """What tells refusals apart: which settings, and why; not the file, the numbers, the words."""
    kinds = {
        (each.key if each.key in config.KEYS else "", each.rule.partition(":")[0])
        for each in error.problems
    }
    assert str(error)
    return f"refused {sorted(kinds)[:3]}"


def read_settings_text(data: bytes) -> object:
    """`section.key=value` of a flag, and the same of a variable."""
    text = data.decode("utf-8", "replace")
    name, value = config.parse_assignment(text)
    try:
        loaded = config.load(
            environment={f"VOICED_{name.replace('.', '_').upper()}": value, "VOICED_CONFIG": ""},
            flags={name: ("--set", value)},
            system_file=Path("/nonexistent"),
        )
    except ConfigError as error:
        return _refusal(error)
    is_local_endpoint(loaded.settings.bus.endpoint)
    return "loaded"


def read_tokens(data: bytes) -> object:
    book = tokens.parse(data)
    for token in book.tokens:
        assert set(token.scopes) <= set(tokens.SCOPES)
    return book


def read_token_text(data: bytes) -> object:
    text = data.decode("utf-8", "replace")
    tokens.expiry_s(text, 1_000)
    return None


def check_token(data: bytes) -> object:
    grant = BOOK.check(data.decode("utf-8", "surrogateescape"), 0)
    raise AssertionError(f"{grant} for a text that is no token")


def read_allowed(data: bytes) -> object:
    allowed = curve.parse_allowed(data)
    allowed.find(RAW_KEY, "subscribe")
    return allowed


def ask_zap(data: bytes) -> object:
    status = HANDLER.answer(data.split(b"\xfe"))[2]
    assert status == b"400"
    return status


def read_request(data: bytes) -> object:
    """What we read of headers and addresses; the library has parsed them before."""
    lines = data.decode("latin-1").split("\n")
    headers = Headers()
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name in ("Authorization", "Sec-WebSocket-Protocol"):
            try:
                headers[name] = value
            except InvalidHeaderValue:  # the library refuses the request
                return None
        elif name == "Origin":
            is_allowed_origin(value, ("https://car.example",))
    wanted_topics(lines[0])
    return presented(Request(lines[0], headers))


def read_weights(data: bytes) -> object:
    return ct2.parse_model(data, label="weights")


BOOK, _ = tokens.new(tokens.TokenBook(), "car", ("stream",), now_s=0, expires_s=None)
HANDLER = CurveServer(
    KeyPair(KEY, KEY),
    Watched((), lambda: AllowList((curve.AllowedKey("car", KEY, ("subscribe",)),))),
)


def _wav(rate: int = 8_000, channels: int = 1, bits: int = 16, kind: int = 1) -> bytes:
    sound = bytes(range(256)) * 2
    block = channels * bits // 8
    return (
        b"RIFF"
        + (36 + len(sound)).to_bytes(4, "little")
        + b"WAVEfmt \x10\0\0\0"
        + kind.to_bytes(2, "little")
        + channels.to_bytes(2, "little")
        + rate.to_bytes(4, "little")
        + (rate * block).to_bytes(4, "little")
        + block.to_bytes(2, "little")
        + bits.to_bytes(2, "little")
        + b"data"
        + len(sound).to_bytes(4, "little")
        + sound
    )


def _encoded(container: str, codec: str, rate: int) -> bytes:
    """A tenth of a second of a tone in one of the formats that phones and browsers record."""
    import io

    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        layout = "mono"
        tone = (np.sin(np.arange(rate // 10) / 10) * 8_000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None, :], format="s16", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        stream.codec_context.layout = layout
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            for packet in stream.encode(each):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return _without_padding(out.getvalue()) if container == "flac" else out.getvalue()


def _without_padding(flac: bytes) -> bytes:
    """Cut the 8 KiB that FFmpeg leaves for tags: longer than any input here."""
    kept, at, is_last = [], 4, False
    while not is_last:
        kind, size = flac[at] & 0x7F, int.from_bytes(flac[at + 1 : at + 4], "big")
        is_last = bool(flac[at] & 0x80)
        if kind != 1:
            kept.append(flac[at : at + 4 + size])
        at += 4 + size
    kept[-1] = bytes([kept[-1][0] | 0x80]) + kept[-1][1:]
    return b"".join((flac[:4], *kept, flac[at:]))


def _server_messages() -> tuple[bytes, ...]:
    common: dict[str, Any] = {"stream": "desk", "segment": 1}
    spoken = {"start_ms": 0, "end_ms": 9, "language": "en"}
    return tuple(
        wire.encode(message)
        for message in (
            wire.Ready(stream="desk", bundle="b", rate_hz=16_000, resume_token="t" * 22),
            wire.SpeechStarted(start_ms=1, **common),
            wire.Partial(revision=1, text="你好", stable_chars=1, **spoken, **common),
            wire.Final(
                revision=1,
                text="open",
                confidence=0.5,
                latency_ms=1,
                words=(wire.WordInfo("open", 0, 1, 0.5),),
                n_best=(wire.Alternative("open", -0.1),),
                **spoken,
                **common,
            ),
            wire.Failed(code="busy", message="x", **common),
            wire.Intent(
                name="open", slots={"a": [1, {"b": None}]}, text="x", confidence=1, **common
            ),
            wire.Heartbeat(stream="-", epoch="e", seq=1, wall_ms=1),
            wire.Error(stream="-", code="busy", message="x", retry_after_ms=1),
            wire.Ended(stream="desk", audio_ms=1, segments=1),
        )
    )


def _client_messages() -> tuple[bytes, ...]:
    return (
        *(wire.encode(each) for each in (wire.Flush(), wire.Stop(), wire.Cancel())),
        wire.encode(wire.Start(v=1, audio=wire.AudioParams(), stream="desk", language="en")),
        wire.encode(wire.Start(v=1, audio=wire.AudioParams(), vad=wire.VadParams(kind="webrtc"))),
        wire.encode(wire.Resume(v=1, stream="desk", token="t" * 22, received=3)),
        b'{"type":"start","v":2,"audio":{}}',
    )


def _ipc_messages() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    segment = Segment(1, "desk", 0, np.zeros(160, np.int16), "en")
    request = EngineRequest(segment, RequestKind.FINAL, 1, None)
    from_host = (ipc.submit_of(1, request, 0), ipc.Cancel(1), ipc.Stop())
    from_worker = (
        ipc.Hello(1),
        ipc.Progress("x"),
        ipc.Heartbeat((1,), 5, EngineLoad(), 1, 1),
        ipc.Stopped(),
    )
    return (
        tuple(ipc.encode(each) for each in from_host),
        tuple(ipc.encode(each) for each in from_worker),
    )


def _fields(*structs: Any) -> tuple[bytes, ...]:
    return tuple(
        f'"{field.encode_name}":'.encode()
        for each in structs
        for field in msgspec.structs.fields(each)
    )


def all_targets() -> dict[str, Target]:
    """Every target by name, seeds made."""
    json_words = _fields(wire.Start, wire.Resume, wire.Final, wire.Partial, wire.Intent)
    host, worker = _ipc_messages()
    launch = ipc.Launch(EngineConfig(bundle_dir="fake", backend="fake"), "ipc://x", 20)
    toml = b'[server]\nport = 9000\nallowed_origins = ["a"]\n[server.tls]\ncertificate = "x"\n'
    token_file = msgspec.json.encode({"version": 1, "tokens": msgspec.to_builtins(BOOK.tokens)})
    allowed = msgspec.json.encode(
        {"version": 1, "keys": [{"name": "a", "public": KEY, "domains": ["ingest"]}]}
    )
    toml_words = (*(name.encode() for name in config.KEYS), b" = ", b'"""', b"[[", b"'''", b"\\U")
    zap = b"\xfe".join((b"1.0", b"1", b"ingest", b"127.0.0.1", b"", b"CURVE", RAW_KEY))
    request = (
        b"/v1/events?topics=final/,x\nAuthorization: Bearer vk_x\n"
        b"Sec-WebSocket-Protocol: voiced.v1, voiced.bearer.vk_x\nOrigin: http://[::1]:80"
    )
    spooled = spool.encode(Heard(Segment(1, "desk", 0, np.zeros(8, np.int16), "en"), "e", 1, 1))
    weights = b"".join(
        (
            (6).to_bytes(4, "little"),
            (2).to_bytes(2, "little") + b"W\0",
            *(number.to_bytes(4, "little") for number in (3, 1)),
            (2).to_bytes(2, "little") + b"w\0",
            b"\x01" + (2).to_bytes(4, "little") + b"\x05" + (4).to_bytes(4, "little") + bytes(4),
            (0).to_bytes(4, "little"),
        )
    )
    found = (
        Target("wire_client", read_client, _client_messages(), (wire.WireError,), json_words),
        Target("wire_server", read_server, _server_messages(), (wire.WireError,), json_words),
        Target(
            "stream_protocol",
            talk,
            (b"\xfe".join(b"t" + each for each in _client_messages()), b"b\0\0\xfet{}"),
            (),
            (b"\xfe", b"\xfet", b"\xfeb", *_client_messages()),
        ),
        Target(
            "admin",
            admin.decode_command,
            (b'{"type":"switch_model","v":1,"model":"whisper-base"}',),
            (wire.WireError,),
            (*_fields(admin.SwitchModel), b"fake", b"../"),
        ),
        Target("hotword", read_hotword, (b"Samantha Jones :2.5",), (ValueError,), (b" :", b".")),
        Target("bus_intent", read_plugin, _server_messages(), (wire.WireError,), json_words),
        Target("ipc_host", read_host, host, (ipc.IpcError,)),
        Target("ipc_worker", read_worker, worker, (ipc.IpcError,)),
        Target("ipc_launch", ipc.decode_launch, (ipc.encode_launch(launch),), (ipc.IpcError,)),
        Target("pcm", read_pcm, (bytes(64), b"\2\0\1\6" + bytes(range(256))), (), weight=0.1),
        Target(
            "media",
            media_reader(),
            (
                *(_wav(), _wav(44_100, 2, 24), _wav(16_000, 1, 32, 3), b""),
                *(_encoded(*each) for each in MEDIA),
            ),
            (MediaError,),
            (
                b"RIFF",
                b"OggS",
                b"fLaC",
                b"ftypM4A ",
                b"\x1a\x45\xdf\xa3",
                b"ID3\4",
                b"LIST",
                b"moov",
            ),
            weight=0.1,
        ),
        Target(
            "manifest",
            read_manifest,
            (b"{}", b'{"format":1}', MANIFEST),
            (BundleError,),
            _fields(bundle.Manifest),
        ),
        Target("config_toml", config_reader(), (toml,), (ConfigError,), toml_words, weight=0.1),
        Target(
            "config_text",
            read_settings_text,
            (b"server.port=1", b"engine.languages=en,zh", b"vad.kind=silero"),
            (ConfigError,),
            toml_words,
            weight=0.1,
        ),
        Target("tokens_file", read_tokens, (token_file,), (ValueError,), _fields(tokens.Token)),
        Target("token_text", check_token, (b"vk_" + b"x" * 43,), (tokens.TokenRefused,)),
        Target("token_expiry", read_token_text, (b"90d", b"2999-01-31"), (tokens.TokenFileError,)),
        Target("allow_list", read_allowed, (allowed,), (ValueError,), _fields(curve.AllowedKey)),
        Target("zap", ask_zap, (zap,), (), (b"\xfe", b"CURVE", b"NULL", b"PLAIN")),
        Target(
            "request",
            read_request,
            (request,),
            (),
            (b"\nOrigin:", b"://", b"Bearer ", b"%"),
        ),
        Target("weights", read_weights, (weights,), (FetchError,)),
        Target(
            "replay",
            disk.asker(),
            (disk.ASKED, b'{"type":"replay","v":1,"id":0,"since_ms":1,"limit":9}'),
            (wire.WireError,),
            (*_fields(wire.Replay, wire.Position), disk.EPOCH.encode()),
            weight=0.1,
        ),
        Target(
            "journal_file",
            disk.file_reader(),
            (b"", b"\0\0\1x", b"\x20\2\4\0\0\0\0", b"\x12\0\2\2\2"),
            disk.REFUSES,
            weight=0.1,
        ),
        Target(
            "journal_rows",
            disk.row_reader(),
            (b"", b"\0\0" + wire.encode(disk.final(1)), b"\xfe\4\1x", b"\2\2" + bytes(8)),
            disk.REFUSES,
            (b"\xfe", *(bytes((column, kind)) for column in range(9) for kind in range(5))),
            weight=0.1,
        ),
        Target("spool", disk.read_spooled, (spooled,), (disk.JournalError,)),
    )
    return {target.name: target for target in found}


MEDIA = (
    ("ogg", "libopus", 48_000),
    ("flac", "flac", 16_000),
    ("mp3", "libmp3lame", 16_000),
    ("ipod", "aac", 16_000),
    ("webm", "libopus", 48_000),
)

MANIFEST = msgspec.json.encode(
    bundle.Manifest(
        name="tiny",
        family="whisper",
        created_by="test",
        source=bundle.Source(content_sha256="0" * 64, packages=("a==1",), licence="MIT"),
        graphs={"step": "step.onnx"},
        model={"layers": 2},
        gears=(bundle.GearShape(frames=200), bundle.GearShape(frames=400, batch=2)),
        golden=bundle.Golden(input="golden.pcm", output="golden.json"),
        quantisation="int8",
        files={
            name: bundle.FileEntry(sha256="0" * 64, bytes=1)
            for name in ("step.onnx", "golden.pcm", "golden.json")
        },
    )
)
