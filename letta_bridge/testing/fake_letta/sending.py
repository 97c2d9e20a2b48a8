"""Starts runs: locks, repeated requests, and the ways in which an answer comes back."""

import asyncio
import contextlib

from aiohttp import web

from .core import Core
from .engine import Execution
from .faults import LATE, Fault, drop
from .orders import Order
from .state import Agent, Conversation, Run
from .wire import NO_REDIS, EventLog, answer, new_id, now, refuse


def start(
    core: Core,
    agent: Agent,
    conversation: Conversation | None,
    order: Order,
    run_type: str,
    *,
    lock_key: str | None = None,
) -> tuple[Execution, asyncio.Task[None]]:
    """Create the run and let it go, whatever becomes of the client."""
    extra = {"lettuce": None} if run_type == "send_message_async" else {}
    run = Run(
        agent_id=agent.id,
        # the real server forgets the conversation of a run that does not stream
        conversation_id=conversation.id if conversation is not None and order.streaming else None,
        background=order.background or run_type == "send_message_async",
        metadata={"run_type": run_type, **extra},
        lock_key=lock_key,
    )
    core.db.add_run(run)
    log = EventLog(numbered=order.background) if order.streaming else None
    if order.background:
        run.log = log
    execution = Execution(core, run, agent, conversation, order, log)
    agent.updated_at = now()
    return execution, core.spawn(execution.run())


async def respond(
    core: Core,
    request: web.Request,
    agent: Agent,
    conversation: Conversation | None,
    order: Order,
    run_type: str,
    *,
    lock_key: str | None,
) -> web.StreamResponse:
    """Run a turn and answer with it. ``lock_key`` names the thread on the routes that lock."""
    if order.streaming:
        return await _stream(core, request, agent, conversation, order, run_type, lock_key)
    token = _token(order)
    if lock_key is not None and conversation is None and core.redis:
        core.acquire(lock_key, token)
    else:
        lock_key = None  # on a conversation only streams lock
    execution, task = start(core, agent, conversation, order, run_type, lock_key=lock_key)
    if core.redis and lock_key is not None:
        _remember(core, order, execution.run_, token)
    await asyncio.shield(task)
    if execution.error is not None:
        raise execution.error
    return answer(execution.result)


async def _stream(
    core: Core,
    request: web.Request,
    agent: Agent,
    conversation: Conversation | None,
    order: Order,
    run_type: str,
    lock_key: str | None,
) -> web.StreamResponse:
    token = _token(order)
    if core.redis and lock_key is not None:
        known = core.db.runs.get(core.db.otid_runs.get(token, "")) if order.background else None
        if known is not None:
            return await replay(core, request, known, pings=order.pings)
        core.acquire(lock_key, token)
    if order.background and not core.redis:
        _refuse_background(core, agent, conversation, run_type)
    execution, _ = start(core, agent, conversation, order, run_type, lock_key=lock_key)
    run = execution.run_
    if core.redis:
        _remember(core, order, run, token)
    run.status = "running"
    assert execution.log is not None
    return await _write(core, request, execution.log, run.id, pings=order.pings)


def _refuse_background(core: Core, agent: Agent, conversation: Conversation | None, run_type: str) -> None:
    """Answer 503 as the real server does: it leaves a failed run behind."""
    text = f"INTERNAL_SERVER_ERROR: {NO_REDIS}"
    run = Run(
        agent_id=agent.id,
        conversation_id=conversation.id if conversation is not None else None,
        background=True,
        metadata={"run_type": run_type, "error": text},
        lock_key=None,
        status="failed",
    )
    run.completed_at = now()
    core.db.add_run(run)
    refuse(503, text)


def _token(order: Order) -> str:
    """The key of a request: the ordered list of all its otids. Global over agents and conversations."""
    return "\x00".join(["request", *order.otids]) if order.otids else new_id("request")


def _remember(core: Core, order: Order, run: Run, token: str) -> None:
    """Note by which otids the run can be found again."""
    for key in (token, *order.otids):
        core.db.otid_runs[key] = run.id


async def replay(
    core: Core, request: web.Request, run: Run, *, pings: bool = True, after: int = 0
) -> web.StreamResponse:
    """The events of a run again, then those to come. A run without a stored stream gives silence without end."""
    return await _write(core, request, run.log or EventLog(numbered=True), run.id, pings=pings, after=after)


async def _write(
    core: Core, request: web.Request, log: EventLog, run_id: str, *, pings: bool, after: int = 0
) -> web.StreamResponse:
    """Stream ``log`` to the client until it ends or the client is gone."""
    fault = LATE.get()
    if fault is not None and fault.after_processing:
        await log.finished()
        return await fault.strike(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    written = 0
    with contextlib.suppress(ConnectionResetError):
        await response.prepare(request)
        events = log.follow(
            run_id, after=after, ping_every=core.settings.ping_every if pings else None, silence=core.settings.silence
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if fault is not None and written == fault.after_events:
                    return await _interrupt(fault, request, response)
                await response.write(event.encode("utf-8", "replace"))
                written += 1
        if fault is not None and fault.after_events is not None:
            return await _interrupt(fault, request, response)
        await response.write_eof()
    return response


async def _interrupt(fault: Fault, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Break a stream off: cut it, or say nothing more."""
    if fault.how == "hang":
        await asyncio.Event().wait()
    drop(request)
    return response
