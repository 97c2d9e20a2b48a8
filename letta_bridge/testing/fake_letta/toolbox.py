"""The tools that the fake server runs itself."""

import inspect
from typing import Any

from .core import Core
from .state import Agent


class ToolError(Exception):
    """A tool failed; the text is what the model gets to know."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


async def run_tool(core: Core, agent: Agent, loaded: dict[str, str], name: str, arguments: dict[str, Any]) -> str:
    """Run a tool. ``loaded`` are the block values from the start of the turn.

    As on the real server a memory tool writes the value that the turn loaded at its start, with its change:
    what another turn wrote to the same block meanwhile is lost without a word.
    """
    if name in core.functions:
        try:
            result = core.functions[name](arguments)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:  # the boundary to a test's own function: its failure is the tool's
            raise ToolError(type(error).__name__, str(error)) from error
    if name in ("memory_insert", "memory_replace", "core_memory_append"):
        return _edit(agent, loaded, name, arguments)
    if name == "conversation_search":
        return _search(core, agent, str(arguments.get("query", "")))
    return f"ran {name}"


def _edit(agent: Agent, loaded: dict[str, str], name: str, arguments: dict[str, Any]) -> str:
    label = str(arguments.get("label", ""))
    block = agent.block(label)
    if block is None or label not in loaded:
        sections = ", ".join(loaded)
        raise ToolError("KeyError", f"'Block field {label} does not exist (available sections = {sections})'")
    if name == "memory_replace":
        old = str(arguments.get("old_string", ""))
        if old not in loaded[label]:
            raise ToolError(
                "ValueError",
                f"No replacement was performed, old_string `{old}` did not appear verbatim in memory block "
                f"with label `{label}`.",
            )
        loaded[label] = loaded[label].replace(old, str(arguments.get("new_string", "")), 1)
    else:
        loaded[label] += "\n" + str(arguments.get("new_string", arguments.get("content", "")))
    block.value = loaded[label]
    return block.value


def _search(core: Core, agent: Agent, query: str) -> str:
    """Finds messages of every conversation of the agent: it does not keep rooms apart."""
    found = [
        {"role": row.role, "content": row.text}
        for row in core.db.history(agent_id=agent.id)
        if row.role in ("user", "assistant") and query.lower() in row.text.lower()
    ][-5:]
    return str({"message": f"Showing {len(found)} results:", "results": found})
