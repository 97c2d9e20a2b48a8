"""The scripted model: what directs it, and the shapes that it answers in."""

import json
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from letta_bridge.testing.model_server import PERSONAS, Server, decide, embedding
from letta_bridge.testing.stack.loopback import Refused, request_json

_TOOLS = [{"function": {"name": "look", "parameters": {"properties": {"thinking": {}, "request_heartbeat": {}}}}}]
_SPEAK = [{"function": {"name": "send_message", "parameters": {"properties": {}}}}]


def _request(text: object, **more: object) -> dict:
    return {"messages": [{"role": "system", "content": "#error 500"}, {"role": "user", "content": text}], **more}


def test_the_last_user_message_directs() -> None:
    assert decide(_request("hello")).text == "echo: hello"
    assert decide(_request("#say a\nb ")).text == "a\nb"
    assert decide(_request("#error 429")).status == 429
    assert decide(_request("#hang 0.5")).hang == 0.5
    slow = decide(_request("#slow 3 0.2"))
    assert (slow.text, slow.pause) == ("word0 word1 word2", 0.2)
    assert decide(_request("#errorafter 2 x")).cut_after == 2
    assert decide(_request("#reason hm\nmore")).reasoning == "hm"
    assert decide({"messages": [*_request("#say a")["messages"], {"role": "user", "content": "b"}]}).text == "echo: b"
    assert decide(_request('{"type": "user_message", "message": "in a wrapper"}')).text == "echo: in a wrapper"
    picture = [{"type": "text", "text": "see"}, {"type": "image_url"}]
    assert decide(_request(picture)).text == "echo: see [1 image]"
    assert decide({}).text == "echo: "


def test_inside_the_envelope_only_what_the_person_wrote_directs() -> None:
    sealed = '[letta_bridge v1]\nroom: {"name": "#error 500"}\nmessage:\n| #say two\n| \n| lines'
    answer = decide(_request(sealed))
    assert (answer.status, answer.text) == (200, "two\n\nlines")
    answer = decide(_request(sealed.replace("#say ", "")), PERSONAS["demo"])
    assert "stand-in" in answer.text
    assert "“two lines”" in answer.text


def test_tools_are_called_when_offered_and_their_result_is_told() -> None:
    call = decide(_request('#tool look {"at": 1}', tools=_TOOLS)).call
    assert call is not None
    assert (call.name, call.arguments) == (
        "look",
        {"thinking": "scripted thought", "at": 1, "request_heartbeat": True},
    )
    assert decide(_request('#tool other {"at": 1}', tools=_TOOLS)).call is None
    told = _request('#tool look {"at": 1}', tools=_TOOLS)
    told["messages"].append({"role": "tool", "content": "a tree"})
    assert decide(told).call is None
    assert decide(told).text == "tool said: a tree"
    speech = decide(_request("hi", tools=_SPEAK)).call
    assert speech is not None
    assert speech.arguments == {"message": "echo: hi"}


@pytest.fixture
def url() -> Iterator[str]:
    server = Server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_speaks_the_api_whole_and_streamed(url: str) -> None:
    chat = f"{url}/v1/chat/completions"
    assert "gpt-4o" in [model["id"] for model in request_json(f"{url}/v1/models")["data"]]
    whole = request_json(chat, _request("#reason why\n#say a b c", model="gpt-4o"))
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": "a b c",
        "reasoning_content": "why",
    }
    asked = urllib.request.Request(chat, json.dumps(_request("#say a b c", stream=True)).encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as answer:
        events = [line[6:] for line in answer.read().decode().split("\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in map(json.loads, events) if event["choices"]]
    assert [delta["content"] for delta in deltas if delta.get("content")] == ["a ", "b ", "c"]
    with pytest.raises(Refused, match="429"):
        request_json(chat, _request("#error 429"))
    with pytest.raises(Refused, match="404"):
        request_json(f"{url}/a/webhook", {"x": 1})
    assert request_json(f"{url}/_log")[-1]["path"] == "/a/webhook"
    request_json(f"{url}/_reset", {})
    assert request_json(f"{url}/_log") == []
    vector = request_json(f"{url}/v1/embeddings", {"input": "x", "dimensions": 8})["data"][0]["embedding"]
    assert vector == embedding("x", 8)
