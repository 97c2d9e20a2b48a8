"""Which model stands behind the demo's Letta: the one that the environment names, else a scripted stand-in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from letta_bridge.testing.stack.process import StackError

CHOICE = "LETTA_BRIDGE_DEMO_MODEL"
_FAVOURITES = (r"gpt-4o-mini$", r"gpt-4\.1-mini$", r"gpt-4o$", r"gpt-4\.1$", r"^ollama/", r"")
_LETTAS_OWN = "letta/"  # runs on a service of Letta's that a local server has no key for


@dataclass(frozen=True)
class Provider:
    """Where Letta finds its models. ``environment`` is empty for the scripted stand-in."""

    title: str
    environment: Mapping[str, str]

    @property
    def scripted(self) -> bool:
        return not self.environment


def from_environment(environ: Mapping[str, str]) -> Provider:
    """The provider that OPENAI_API_KEY, OPENAI_API_BASE or OLLAMA_BASE_URL name (the first two win)."""
    key, base = environ.get("OPENAI_API_KEY"), environ.get("OPENAI_API_BASE")
    if key or base:
        settings = {"OPENAI_API_KEY": key or "none"}
        if base:
            settings |= {"OPENAI_API_BASE": base, "OPENAI_BASE_URL": base}
        return Provider(f"the OpenAI API at {base}" if base else "OpenAI", settings)
    if ollama := environ.get("OLLAMA_BASE_URL"):
        return Provider(f"Ollama at {ollama}", {"OLLAMA_BASE_URL": ollama})
    return Provider("a scripted stand-in", {})


def choose(handles: Sequence[str], wanted: str | None) -> str:
    """The handle of the model to use; StackError, with the handles there are, when there is no such model."""
    offered = [handle for handle in handles if not handle.startswith(_LETTAS_OWN)]
    if not offered:
        raise StackError("Letta found no model there. Is the address right, and (for Ollama) a model pulled?")
    if wanted:
        for handle in offered:
            if wanted in (handle, handle.partition("/")[2]):
                return handle
        raise StackError(f"{CHOICE}={wanted}: there is no such model. There are: {', '.join(offered)}")
    return next(
        handle for pattern in _FAVOURITES for handle in sorted(offered) if re.search(pattern, handle) is not None
    )
