"""The JSON shapes of the things that are kept, as the real server shows them."""

import json
from collections.abc import Collection
from datetime import datetime
from typing import Any

from .state import Agent, Block, Conversation, Row, Run, Step, Tool
from .wire import ORGANISATION, USER, Json, moment, new_id, now, second

USAGE = {"completion_tokens": 10, "prompt_tokens": 100, "total_tokens": 110}
_CACHE_KEYS = ("cached_tokens", "cache_read_tokens", "cache_creation_tokens")
MODEL_ENDPOINT = "http://127.0.0.1:9/v1"

_TOOL_PARAMETERS: dict[str, tuple[str, ...]] = {
    "conversation_search": ("query",),
    "memory_insert": ("label", "new_string"),
    "memory_replace": ("label", "old_string", "new_string"),
    "core_memory_append": ("label", "content"),
}


def model_json(handle: str) -> Json:
    """A language model, as listed and (less three fields) as an agent's ``llm_config``."""
    provider, _, name = handle.partition("/")
    provider = "letta" if provider == "letta" else "openai"
    return {
        "handle": handle,
        "name": name,
        "display_name": name,
        "provider_type": provider,
        "provider_name": provider,
        "model_type": "llm",
        "model": name,
        "model_endpoint_type": "openai",
        "model_endpoint": MODEL_ENDPOINT,
        "provider_category": "base",
        "model_wrapper": None,
        "context_window": 128000,
        "put_inner_thoughts_in_kwargs": False,
        "temperature": 1.0,
        "max_tokens": 16384,
        "enable_reasoner": True,
        "reasoning_effort": None,
        "max_reasoning_tokens": 0,
        "effort": None,
        "frequency_penalty": None,
        "compatibility_type": None,
        "verbosity": None,
        "tier": None,
        "parallel_tool_calls": False,
        "response_format": None,
        "strict": False,
        "return_logprobs": False,
        "top_logprobs": None,
        "return_token_ids": False,
        "tool_call_parser": None,
        "max_context_window": 128000,
    }


def block_json(block: Block) -> Json:
    return {
        "value": block.value,
        "limit": block.limit,
        "project_id": None,
        "template_name": None,
        "is_template": False,
        "template_id": None,
        "base_template_id": None,
        "deployment_id": None,
        "entity_id": None,
        "preserve_on_migration": False,
        "label": block.label,
        "read_only": block.read_only,
        "description": block.description,
        "metadata": block.metadata,
        "hidden": None,
        "id": block.id,
        "created_by_id": None,
        "last_updated_by_id": None,
        "tags": [],
    }


def tool_json(tool: Tool) -> Json:
    names = _TOOL_PARAMETERS.get(tool.name, ())
    return {
        "id": tool.id,
        "tool_type": tool.type,
        "description": f"The tool {tool.name} of the imitation.",
        "source_type": "python",
        "name": tool.name,
        "tags": [tool.type],
        "source_code": None,
        "json_schema": {
            "name": tool.name,
            "description": f"The tool {tool.name} of the imitation.",
            "parameters": {
                "type": "object",
                "properties": {name: {"type": "string", "description": name} for name in names},
                "required": list(names),
            },
        },
        "args_json_schema": None,
        "return_char_limit": 50000,
        "pip_requirements": None,
        "npm_requirements": None,
        "default_requires_approval": None,
        "enable_parallel_execution": False,
        "created_by_id": USER,
        "last_updated_by_id": USER,
        "metadata_": {},
        "project_id": None,
    }


def system_prompt(agent: Agent, memory: dict[str, str], compiled: datetime) -> str:
    """The system prompt with the memory compiled into it. Letta writes ``default`` there for conversations too."""
    blocks = "".join(f"<{label}>\n<value>\n{value}\n</value>\n</{label}>\n" for label, value in memory.items())
    return (
        f"You are an agent of an imitated Letta.\n<memory_blocks>\n{blocks}</memory_blocks>\n<memory_metadata>\n"
        f"- AGENT_ID: {agent.id}\n- CONVERSATION_ID: default\n- System prompt last recompiled: {moment(compiled)}\n"
        "</memory_metadata>"
    )


_AGENT_CONSTANTS: Json = {
    "project_id": None,
    "template_id": None,
    "base_template_id": None,
    "deployment_id": None,
    "entity_id": None,
    "identity_ids": [],
    "identities": [],
    "timezone": "UTC",
    "max_files_open": 10,
    "per_file_view_window_char_limit": 25000,
}
"""What the fake never varies of an agent."""


def agent_json(agent: Agent, include: Collection[str] | None, pending: Row | None = None) -> Json:
    """An agent. ``include`` names the relations to show (``agent.tags`` …); ``None`` shows all but the approval."""
    every = include is None
    chosen = include or ()
    blocks = [block_json(block) for block in agent.blocks] if every or "agent.blocks" in chosen else []
    tools = [tool_json(tool) for tool in agent.tools] if every or "agent.tools" in chosen else []
    group = agent.group if every or "agent.managed_group" in chosen else None
    config = model_json(agent.model)
    listed_only = ("name", "provider_type", "model_type", "max_context_window")
    return {
        "created_by_id": USER,
        "last_updated_by_id": USER,
        "created_at": moment(agent.created_at),
        "updated_at": moment(agent.updated_at),
        "id": agent.id,
        "name": agent.name,
        "tool_rules": [
            {"tool_name": name, "type": "requires_approval", "prompt_template": None}
            for name in sorted(agent.needs_approval)
        ],
        "message_ids": list(agent.message_ids),
        "system": "You are an agent of an imitated Letta.",
        "agent_type": agent.agent_type,
        "llm_config": {key: value for key, value in config.items() if key not in listed_only},
        "embedding_config": None,
        "model": agent.model,
        "embedding": None,
        "model_settings": {
            "max_output_tokens": 16384,
            "parallel_tool_calls": True,
            "provider_type": "openai",
            "temperature": 1.0,
            "reasoning": {"reasoning_effort": "minimal"},
            "response_format": None,
            "strict": False,
        },
        "compaction_settings": None,
        "response_format": None,
        "description": agent.description,
        "metadata": agent.metadata,
        "memory": {
            "agent_type": agent.agent_type,
            "git_enabled": False,
            "blocks": blocks,
            "file_blocks": [],
            "prompt_template": "",
        },
        "blocks": blocks,
        "tools": tools,
        "sources": [],
        "tags": list(agent.tags) if every or "agent.tags" in chosen else [],
        "tool_exec_environment_variables": [],
        "secrets": [],
        "pending_approval": pending.items[-1] if pending is not None and "agent.pending_approval" in chosen else None,
        "hidden": agent.hidden,
        "message_buffer_autoclear": False,
        "enable_sleeptime": None,
        "multi_agent_group": group,
        "managed_group": group,
        "last_run_completion": None,
        "last_run_duration_ms": None,
        "last_stop_reason": agent.last_stop_reason,
        **_AGENT_CONSTANTS,
    }


def sleeptime_group(manager_id: str, companion_id: str) -> Json:
    """The group that ties an agent to its sleeptime companion."""
    return {
        "id": new_id("group"),
        "manager_type": "sleeptime",
        "agent_ids": [companion_id],
        "description": "",
        "project_id": None,
        "template_id": None,
        "base_template_id": None,
        "deployment_id": None,
        "shared_block_ids": [],
        "manager_agent_id": manager_id,
        "termination_token": None,
        "max_turns": None,
        "sleeptime_agent_frequency": 5,
        "turns_counter": -1,
        "last_processed_message_id": None,
        "max_message_buffer_length": None,
        "min_message_buffer_length": None,
        "hidden": None,
    }


def conversation_json(conversation: Conversation, *, context: bool = False) -> Json:
    """A conversation; only retrieving one shows its context."""
    return {
        "created_by_id": USER,
        "last_updated_by_id": USER,
        "created_at": moment(conversation.created_at),
        "updated_at": moment(conversation.updated_at),
        "id": conversation.id,
        "agent_id": conversation.agent_id,
        "summary": conversation.summary,
        "in_context_message_ids": list(conversation.context) if context else [],
        "isolated_block_ids": [],
        "model": conversation.model,
        "model_settings": conversation.model_settings,
        "last_message_at": moment(conversation.last_message_at),
    }


def run_json(run: Run) -> Json:
    spent = None
    if run.completed_at is not None:
        spent = int((run.completed_at - run.created_at).total_seconds() * 1e9)
    return {
        "id": run.id,
        "status": run.status,
        "created_at": moment(run.created_at),
        "completed_at": moment(run.completed_at, zone=False),
        "agent_id": run.agent_id,
        "conversation_id": run.conversation_id,
        "base_template_id": None,
        "background": run.background,
        "metadata": run.metadata,
        "request_config": {
            "use_assistant_message": True,
            "assistant_message_tool_name": "send_message",
            "assistant_message_tool_kwarg": "message",
            "include_return_message_types": None,
        },
        "stop_reason": run.stop_reason,
        "callback_url": None,
        "callback_sent_at": None,
        "callback_status_code": None,
        "callback_error": None,
        "ttft_ns": None,
        "total_duration_ns": spent,
    }


def step_json(step: Step, model: str) -> Json:
    used = 0 if step.failed else 1
    return {
        "id": step.id,
        "origin": None,
        "organization_id": ORGANISATION,
        "provider_id": None,
        "run_id": step.run_id,
        "agent_id": step.agent_id,
        "provider_name": "openai",
        "provider_category": "base",
        "model": model.partition("/")[2],
        "model_handle": model,
        "model_endpoint": MODEL_ENDPOINT,
        "context_window_limit": 128000,
        **{key: value * used for key, value in USAGE.items()},
        "cached_input_tokens": None,
        "cache_write_tokens": None,
        "reasoning_tokens": None,
        "completion_tokens_details": None if step.failed else {"reasoning_tokens": 0},
        "prompt_tokens_details": None if step.failed else {key: 0 for key in _CACHE_KEYS},
        "stop_reason": step.stop_reason,
        "tags": [],
        "tid": None,
        "trace_id": None,
        "request_id": None,
        "messages": [],
        "feedback": None,
        "project_id": None,
        "error_type": "LLMError" if step.failed else None,
        "error_data": None,
        "status": "failed" if step.failed else "success",
    }


def usage_json(steps: int, *, streamed_tokens: bool) -> Json:
    unknown = None if streamed_tokens else 0
    return {
        "message_type": "usage_statistics",
        **{key: value * steps for key, value in USAGE.items()},
        "step_count": steps,
        "run_ids": None,
        "cached_input_tokens": unknown,
        "cache_write_tokens": unknown,
        "reasoning_tokens": unknown,
        "context_tokens": USAGE["total_tokens"],
    }


def message_json(kind: str, message_id: str, run_id: str | None, step_id: str | None, **more: Any) -> Json:
    """What all items of the history and all message events have in common, and ``more``."""
    base = {
        "id": message_id,
        "date": second(now()),
        "name": None,
        "message_type": kind,
        "otid": None,
        "sender_id": None,
        "step_id": step_id,
        "is_err": None,
        "seq_id": None,
        "run_id": run_id,
    }
    return {**base, **more}


def part_otid(message_id: str, index: int) -> str:
    """The otid that Letta derives for the parts of a model's message: its uuid with a counter at the end."""
    return f"{message_id.removeprefix('message-')[:-2]}{(int(message_id[-2:], 16) & 0x80) | index:02x}"


def tool_text(ok: bool, text: str) -> str:
    """What the model sees of a tool's return."""
    when = now().strftime("%Y-%m-%d %I:%M:%S %p UTC+0000")
    return json.dumps({"status": "OK" if ok else "Failed", "message": text, "time": when}, indent=2)
