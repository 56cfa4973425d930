"""Stream a 16-bit WAV file to voiced and print what it hears: client.py FILE.wav [URL]"""

import asyncio
import json
import sys
import wave

from websockets.asyncio.client import ClientConnection, connect


async def send(socket: ClientConnection, path: str) -> None:
    with wave.open(path) as wav:
        audio = {"rate_hz": wav.getframerate(), "channels": wav.getnchannels()}
        await socket.send(json.dumps({"type": "start", "v": 1, "audio": audio}))
        while block := wav.readframes(wav.getframerate() // 20):  # 50 ms
            await socket.send(block)
    await socket.send(json.dumps({"type": "stop"}))


async def main(path: str, url: str = "ws://127.0.0.1:8765/v1/stream") -> None:
    async with connect(url) as socket:
        sending = asyncio.create_task(send(socket, path))
        async for text in socket:  # until the daemon closes, after `ended`
            message = json.loads(text)
            print(message["type"], message.get("text") or message.get("message", ""))
        await sending


asyncio.run(main(*sys.argv[1:]))
