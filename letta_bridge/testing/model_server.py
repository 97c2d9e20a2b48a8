"""A scripted stand-in for a language model, with the OpenAI API, so that a real Letta runs without one.

``python -m letta_bridge.testing.model_server --port 18000 [--persona echo|demo]``; standard library only.

Served: ``GET /v1/models``, ``POST /v1/chat/completions`` (whole and streamed, with tool calls), ``POST
/v1/embeddings``, ``GET /_log`` (the latest requests, newest last; a POST to any other path is kept there too
and answered 404) and ``POST /_reset`` (forgets them).

The last message of role ``user`` directs the answer. When it carries the bridge's envelope, the lines that a
person wrote (those behind ``| ``) do.

=====================  ======================================================================================
``#hang S``            S seconds pass before the first byte
``#slow N D``          N words; when streaming, D seconds before each
``#error CODE``        this HTTP status with an error body as OpenAI writes it
``#errorafter N``      streaming: the connection is cut after N words
``#tool NAME {json}``  a call of this tool, if it was offered; after its result the answer ``tool said: …``
``#reason TEXT``       TEXT (to the end of the line) as the model's reasoning, besides the answer
``#say TEXT``          exactly TEXT (to the end of the message)
=====================  ======================================================================================

Without one of these the persona ``echo`` answers ``echo: `` and the message, and the number of pictures in
it; ``demo`` says plainly what it is, and what it was told. Agents whose only way to speak is a tool named
``send_message`` get the answer as a call of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Names of the gpt-4o family make Letta use the chat completions served here; newer names make it use another
# API. The last one is Letta's default for compaction, so it must be in the list.
MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-5-mini")
_USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
_KEPT, _SHOWN = 200, 50

Persona = Callable[[str, str], str]
"""From the whole user message and the person's own words in it to an answer."""


@dataclass(frozen=True)
class ToolCall:
    """A tool that the answer calls, with its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What one chat completion request gets, and when (seconds)."""

    text: str
    reasoning: str | None = None
    call: ToolCall | None = None
    hang: float = 0.0
    pause: float = 0.0
    status: int = 200
    cut_after: int | None = None

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.call else "stop"


def echo(whole: str, _words: str) -> str:
    """The persona of the tests."""
    return f"echo: {whole[:2000]}"


def stand_in(_whole: str, words: str) -> str:
    """The persona of the demo: nobody shall take it for a language model."""
    said = " ".join(words.split())
    return (
        "I am the scripted stand-in model, not a real one: I can only say what I was told. "
        f"You said: “{said[:500]}{'…' if len(said) > 500 else ''}”"
    )


PERSONAS: dict[str, Persona] = {"echo": echo, "demo": stand_in}


def decide(request: dict[str, Any], persona: Persona = echo) -> Answer:
    """The answer to a chat completion request; depends on nothing else."""
    messages = request.get("messages") or []
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    content = messages[last].get("content") if last >= 0 else ""
    whole = _unwrapped(_text(content))
    words = _own_words(whole)
    results = [_text(m.get("content")) for m in messages[last + 1 :] if m.get("role") == "tool"]
    offered = {tool["function"]["name"]: tool["function"] for tool in request.get("tools") or []}
    slow = re.search(r"#slow (\d+) ([\d.]+)", words)
    reasoning = _group(r"#reason (.*)", words)

    if (said := re.search(r"#say (.*)", words, re.DOTALL)) is not None:
        text = said[1].strip()
    elif results:
        text = f"tool said: {results[-1][:300]}"
    elif slow:
        text = " ".join(f"word{i}" for i in range(int(slow[1])))
    else:
        text = persona(whole, words) + _pictures(content)
    cut = _group(r"#errorafter (\d+)", words)
    return Answer(
        text=text,
        reasoning=reasoning,
        call=_tool_call(words, text, reasoning, offered, answered=bool(results)),
        hang=float(_group(r"#hang ([\d.]+)", words) or 0),
        pause=float(slow[2]) if slow else 0.0,
        status=int(_group(r"#error (\d+)", words) or 200),
        cut_after=None if cut is None else int(cut),
    )


def _tool_call(
    words: str, text: str, reasoning: str | None, offered: dict[str, Any], *, answered: bool
) -> ToolCall | None:
    asked = re.search(r"#tool (\w+) (\{.*\})", words, re.DOTALL)
    if asked and not answered and asked[1] in offered:
        name, arguments = asked[1], dict(json.loads(asked[2]))
    elif "send_message" in offered:
        name, arguments = "send_message", {"message": text}
    else:
        return None
    known = offered[name].get("parameters", {}).get("properties", {})
    for key in ("thinking", "inner_thoughts"):  # arguments that Letta adds to every tool of some agent types
        if key in known:
            arguments = {key: reasoning or "scripted thought", **arguments}
    if "request_heartbeat" in known:
        arguments.setdefault("request_heartbeat", name != "send_message")
    return ToolCall(name, arguments)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = (part for part in content or [] if isinstance(part, dict))
    return " ".join(part.get("text", "") for part in parts if part.get("type") in ("text", "input_text"))


def _pictures(content: Any) -> str:
    if not isinstance(content, list):
        return ""
    count = sum(part.get("type") in ("image_url", "input_image") for part in content)
    return f" [{count} image]" if count else ""


def _unwrapped(text: str) -> str:
    """Some agent types get ``{"type": "user_message", "message": …}`` instead of the bare text."""
    try:
        wrapper = json.loads(text)
    except ValueError:
        return text
    return str(wrapper["message"]) if isinstance(wrapper, dict) and "message" in wrapper else text


def _own_words(text: str) -> str:
    lines = [line.removeprefix("|").removeprefix(" ") for line in text.splitlines() if re.match(r"\|( |$)", line)]
    return "\n".join(lines) if lines else text


def _group(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def embedding(value: Any, size: int) -> list[float]:
    """A vector that depends on the value only."""
    digest = hashlib.sha256(str(value).encode()).digest()
    return [digest[i % len(digest)] / 255 for i in range(size)]


@dataclass
class Record:
    """The latest requests, for tests to look at."""

    entries: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: str, body: Any) -> None:
        with self.lock:
            self.entries.append({"t": time.time(), "path": path, "body": body})

    def latest(self) -> list[dict[str, Any]]:
        with self.lock:
            return list(self.entries)[-_SHOWN:]

    def clear(self) -> None:
        with self.lock:
            self.entries.clear()


class Server(ThreadingHTTPServer):
    """Listens at once; ``serve_forever`` answers."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], persona: Persona = echo) -> None:
        super().__init__(address, Handler)
        self.persona = persona
        self.record = Record()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: ``/_log`` says more."""

    def do_GET(self) -> None:
        if self.path.startswith("/v1/models"):
            listed = [{"id": name, "object": "model", "created": 1, "owned_by": "scripted"} for name in MODELS]
            self._send({"object": "list", "data": listed})
        elif self.path == "/_log":
            self._send(self.server.record.latest())
        else:
            self._send({"error": {"message": "not found"}}, 404)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {"raw": raw.decode(errors="replace")}
        if self.path == "/_reset":
            self.server.record.clear()
            return self._send({})
        self.server.record.add(self.path, body)
        if self.path.endswith("/embeddings"):
            return self._send(self._embeddings(body))
        if self.path.endswith("/chat/completions"):
            return self._chat(body)
        return self._send({"error": {"message": f"no route {self.path}"}}, 404)

    @staticmethod
    def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
        asked = body.get("input")
        values = asked if isinstance(asked, list) else [asked]
        size = body.get("dimensions") or 1536
        data = [{"object": "embedding", "index": i, "embedding": embedding(v, size)} for i, v in enumerate(values)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}

    def _chat(self, body: dict[str, Any]) -> None:
        answer = decide(body, self.server.persona)
        time.sleep(answer.hang)
        if answer.status != 200:
            error = {
                "message": f"scripted error {answer.status}",
                "type": "scripted_error",
                "code": "scripted",
            }
            return self._send({"error": error}, answer.status)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.get("model")}
        call = None
        if answer.call:
            function = {"name": answer.call.name, "arguments": json.dumps(answer.call.arguments)}
            call = {"id": f"call_{uuid.uuid4().hex[:20]}", "type": "function", "function": function}
        if body.get("stream"):
            return self._stream(answer, head, call)
        message: dict[str, Any] = {"role": "assistant", "content": None if call else answer.text}
        if call:
            message["tool_calls"] = [call]
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        return self._send({**head, "object": "chat.completion", "choices": [choice], "usage": _USAGE})

    def _stream(self, answer: Answer, head: dict[str, Any], call: dict[str, Any] | None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for part in _opening(answer, call):
                self._delta(head, part)
            source = call["function"]["arguments"] if call else answer.text
            for count, word in enumerate(re.findall(r"\S+\s*", source)):
                if call is None and count == answer.cut_after:
                    self.connection.shutdown(2)
                    self.close_connection = True
                    return
                time.sleep(answer.pause)
                piece = {"tool_calls": [{"index": 0, "function": {"arguments": word}}]} if call else {"content": word}
                self._delta(head, piece)
            self._delta(head, {}, answer.finish_reason)
            self._event(json.dumps({**head, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}))
            self._event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
            self.server.record.add("client-disconnected", {})

    def _delta(self, head: dict[str, Any], delta: dict[str, Any], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self._event(json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}))

    def _event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _send(self, answer: Any, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _opening(answer: Answer, call: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    yield {"role": "assistant", "content": None if call else ""}
    if answer.reasoning:
        yield {"reasoning_content": answer.reasoning}
    if call:
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": 0, "id": call["id"], "type": "function", "function": function}]}


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="scripted stand-in for a language model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18000)
    parser.add_argument("--persona", choices=sorted(PERSONAS), default="echo")
    arguments = parser.parse_args()
    Server((arguments.host, arguments.port), PERSONAS[arguments.persona]).serve_forever()


if __name__ == "__main__":
    main()
