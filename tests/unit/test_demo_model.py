"""Which model the demo takes."""

import pytest

from letta_bridge.demo.model import choose, from_environment
from letta_bridge.testing.stack.process import StackError


def test_the_environment_names_the_model_or_a_stand_in_says_so() -> None:
    assert from_environment({}).scripted
    assert from_environment({"OPENAI_API_KEY": "k"}).environment == {"OPENAI_API_KEY": "k"}
    local = from_environment({"OPENAI_API_BASE": "http://127.0.0.1:1/v1", "OLLAMA_BASE_URL": "http://127.0.0.1:2"})
    assert local.environment["OPENAI_API_BASE"] == "http://127.0.0.1:1/v1"
    assert "OLLAMA_BASE_URL" not in local.environment
    assert from_environment({"OLLAMA_BASE_URL": "http://127.0.0.1:2"}).title == "Ollama at http://127.0.0.1:2"


def test_a_sensible_model_is_chosen_and_a_wrong_wish_is_told() -> None:
    offered = ["letta/letta-free", "openai/gpt-4.1", "openai/gpt-4o-mini", "openai/o3"]
    assert choose(offered, None) == "openai/gpt-4o-mini"
    assert choose(["ollama/qwen3:4b"], None) == "ollama/qwen3:4b"
    assert choose(offered, "o3") == "openai/o3"
    with pytest.raises(StackError, match=r"no such model.*openai/gpt-4\.1"):
        choose(offered, "gpt-9")
    with pytest.raises(StackError, match="no model"):
        choose(["letta/letta-free"], None)
