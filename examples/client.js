// Stream a 16-bit WAV file to voiced and print what it hears: node client.js FILE.wav [URL]
const [path, url = "ws://127.0.0.1:8765/v1/stream"] = process.argv.slice(2);
const wav = require("node:fs").readFileSync(path);
const audio = { rate_hz: wav.readUInt32LE(24), channels: wav.readUInt16LE(22) };
const socket = new WebSocket(url);

socket.onopen = () => {
  socket.send(JSON.stringify({ type: "start", v: 1, audio }));
  const first = wav.indexOf("data") + 8;
  for (let at = first; at < wav.length; at += 32768) socket.send(wav.subarray(at, at + 32768));
  socket.send(JSON.stringify({ type: "stop" }));
};

socket.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  console.log(message.type, message.text ?? message.message ?? "");
};

socket.onclose = ({ code }) => (process.exitCode = code === 1000 ? 0 : 1); // 1000: after `ended`
