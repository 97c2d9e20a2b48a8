"""Runs one turn of an agent, in the order in which the real server does things."""

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import rows, shapes
from .core import Core
from .failures import Cancelled, ContextFull, Dropped, ModelError, Pending, Refused, TurnFailure, Vanished
from .model import call_deltas, choose_words, plan_call
from .orders import KEEP_ALIVE, Order, answer_text, approvals_in, check_answers
from .script import Behaviour, Words, directives, pieces, whole
from .state import Agent, Conversation, Row, Run, Step, Turn
from .toolbox import ToolError, run_tool
from .wire import CANCELLED, DONE, ApiError, EventLog, Json, new_id, now, ping


@dataclass(slots=True)
class _Said:
    """What the model answered in one step."""

    message_id: str
    reason: str | None
    text: str | None = None
    call: Json | None = None
    waits: bool = False


@dataclass(eq=False, slots=True)
class Execution:
    """One turn. After :meth:`run` either ``result`` or ``error`` is set."""

    core: Core
    run_: Run
    agent: Agent
    conversation: Conversation | None
    order: Order
    log: EventLog | None
    result: Json | None = None
    error: ApiError | None = None
    _out: list[Json] = field(default_factory=list)
    _context: list[str] = field(default_factory=list)
    _fresh: list[Row] = field(default_factory=list)
    _loaded: dict[str, str] = field(default_factory=dict)
    _turn: Turn | None = None
    _script: Behaviour | None = None
    _steps: int = 0

    async def run(self) -> None:
        """Run the turn to its end; failures of the turn are results, not exceptions."""
        try:
            if self.order.pings:
                self._emit(ping(self.run_.id))
            await self._start()
            stop = await self._all_steps()
        except Cancelled:
            await self._cancelled()
        except TurnFailure as failure:
            await self._failed(failure)
        except asyncio.CancelledError:
            self._over("lost")
            raise
        except Exception:  # a test's own callable failed: nobody is to wait for this run
            self._over("crashed")
            if self.log is not None:
                self.log.close()
            raise
        else:
            await self._succeeded(stop)

    # beginning

    async def _start(self) -> None:
        """Check the input against the state of the thread; nothing of it is stored yet."""
        db = self.core.db
        self._context = list(db.context(self.agent, self.conversation))
        self._loaded = self.agent.memory()
        pending = db.pending(self._context)
        messages = self.order.messages
        answers = approvals_in(messages[0])
        if answers is None and pending is not None:
            raise Pending(pending.id)
        inputs = [message for message in messages if approvals_in(message) is None]
        if answers is not None and pending is None:
            if not self._answered_before(answers):
                raise Refused(
                    "Cannot process approval response: No tool call is currently awaiting approval. "
                    "Please send a regular message to interact with the agent."
                )
            inputs = inputs or [{"role": "user", "content": KEEP_ALIVE}]
        if answers is not None and pending is not None:
            check_answers(pending, answers)
        if any(not rows.text_of(message["content"]) for message in inputs):
            raise Refused("Message content is empty or invalid")
        self._fresh = [rows.input_row(self.run_, message) for message in inputs]
        self._record(inputs)
        if answers is not None and pending is not None:
            await self._take_answers(pending, answers)

    def _record(self, inputs: Sequence[Json]) -> None:
        """Note the turn for the test, and compile the memory into the main thread's prompt."""
        seen = self._loaded if self.conversation is None else self.conversation.memory
        self._turn = Turn(
            agent_id=self.agent.id,
            conversation_id="default" if self.conversation is None else self.conversation.id,
            texts=[rows.text_of(message["content"]) for message in inputs],
            otids=self.order.otids,
            run_id=self.run_.id,
            memory=dict(seen),
        )
        self.core.turns.append(self._turn)
        self._script = self.core.next_behaviour(self.agent.id)
        if self.conversation is None and self._context:
            recompile(self.core.db.rows.get(self._context[0]), self.agent, self._loaded)

    def _answered_before(self, answers: Sequence[Json]) -> bool:
        wanted = {answer["tool_call_id"] for answer in answers}
        recent = [self.core.db.rows[key] for key in self._context[-10:]]
        return any(row.role == "tool" and row.call is not None and row.call["tool_call_id"] in wanted for row in recent)

    async def _take_answers(self, pending: Row, answers: Sequence[Json]) -> None:
        """Store the answers to an approval request, with the returns they lead to, before the model is asked."""
        assert pending.call is not None
        stored = [rows.response_row(self.run_, answers)]
        for answer in answers:
            ran = False
            if answer.get("type") == "tool":
                ok, text = answer.get("status") == "success", answer_text(answer)
                row = rows.return_row(self.run_, pending.call["step"], pending.call, ok, text)
            elif answer.get("approve"):
                ran = True
                row = await self._use(pending.call, pending.call["step"], known=not pending.call["client"])
            else:
                text = f"Error: request to call tool denied. User reason: {answer.get('reason')}"
                row = rows.return_row(self.run_, pending.call["step"], pending.call, False, text)
            stored.append(row)
            # with token streaming the real server shows only the returns of tools that it ran itself
            if ran or not self.order.tokens:
                self._emit_row(row)
            else:
                self._out.extend(row.items)
        self._persist(stored, None)

    # steps

    async def _all_steps(self) -> str:
        for _ in range(self.order.max_steps):
            step = Step(self.run_.id, self.agent.id)
            self.run_.steps.append(step)
            self.core.db.steps[step.id] = step
            try:
                stop = await self._step(step)
            except TurnFailure as failure:
                step.failed, step.stop_reason = True, failure.stop_reasons[-1]
                raise
            finally:
                self.core.notify(step.id)
            self._steps += 1
            if stop is not None:
                step.stop_reason = stop
                return stop
        return "max_steps"

    async def _step(self, step: Step) -> str | None:
        """One call of the model and what it leads to; a stop reason when the turn is over."""
        said = await self._ask(step)
        self._check_cancelled()
        if said.call is None:
            row = rows.model_row(self.run_, said.message_id, step.id, reason=said.reason, text=said.text)
            self._persist([*self._fresh, row], step)
            self._show(row)
            return "end_turn"
        if said.waits:
            row = rows.request_row(self.run_, said.message_id, step.id, reason=said.reason, call=said.call)
            self._persist([*self._fresh, row], step)
            self._show(row)
            return "requires_approval"
        row = rows.model_row(self.run_, said.message_id, step.id, reason=said.reason, call=said.call)
        self._show(row)
        returned = await self._use(said.call, step.id)
        self._persist([*self._fresh, row, returned], step)
        self._emit_row(returned)
        return None

    async def _ask(self, step: Step) -> _Said:
        """Let the model answer; with token streaming its words go out as they come."""
        view = [self.core.db.rows[key] for key in self._context if key in self.core.db.rows] + self._fresh
        users = [index for index, row in enumerate(view) if row.role == "user"]
        last = view[users[-1]].text if users else ""
        results = [row.text for row in view[(users[-1] + 1 if users else 0) :] if row.role == "tool"]
        behaviour = self._script or directives(last)
        await self.core.hang(self.agent.id)
        if behaviour.hang == math.inf:
            await asyncio.Event().wait()
        if behaviour.hang:
            await asyncio.sleep(behaviour.hang)
        if behaviour.error is not None:
            raise self._model_error(behaviour.error, behaviour.says)
        said = _Said(new_id("message"), behaviour.reason)
        self._check_cancelled()
        if said.reason is not None and self.order.tokens:
            self._emit(rows.reasoning_item(self.run_, said.message_id, step.id, said.reason))
        said.call = plan_call(behaviour, self.order, self.agent, results)
        if said.call is not None:
            said.waits = said.call["approve"] or said.call["client"]
            if self.order.tokens:
                self._stream_call(step, said)
        else:
            assert self._turn is not None
            words = choose_words(behaviour, self.core.reply, self._turn.texts, last, results)
            said.text = await self._answer(step, said, behaviour, words)
        return said

    async def _answer(self, step: Step, said: _Said, behaviour: Behaviour, words: Words) -> str:
        if not self.order.tokens:
            return await whole(words)
        text = ""
        count = 0
        index = 0 if said.reason is None else 1
        async for piece in pieces(words):
            if behaviour.error_after is not None and count >= behaviour.error_after:
                break
            await asyncio.sleep(behaviour.delay)
            self._check_cancelled()
            self._emit(rows.answer_item(self.run_, said.message_id, step.id, piece, index))
            text += piece
            count += 1
        if behaviour.error_after is not None:
            if behaviour.silent:
                await asyncio.Event().wait()
            raise Dropped
        return text

    def _stream_call(self, step: Step, said: _Said) -> None:
        assert said.call is not None
        for part in call_deltas(said.call, waits=said.waits):
            if said.waits:
                item = rows.request_item(self.run_, said.message_id, step.id, part)
            else:
                item = rows.call_item(self.run_, said.message_id, step.id, part, 0 if said.reason is None else 1)
            self._emit({**item, "tool_calls": part})

    async def _use(self, call: Json, step_id: str, *, known: bool = True) -> Row:
        """Run a tool of the server."""
        name = call["name"]
        if not known:
            return rows.return_row(self.run_, step_id, call, False, "Tool not found", name=name)
        try:
            text = await run_tool(self.core, self.agent, self._loaded, name, json.loads(call["arguments"]))
        except ToolError as error:
            stderr = [f"Error executing function {name}: {error.kind}: {error}"]
            return rows.return_row(self.run_, step_id, call, False, str(error), name=name, stderr=stderr)
        return rows.return_row(self.run_, step_id, call, True, text, name=name)

    def _model_error(self, code: int, says: str) -> TurnFailure:
        if code != 413:
            return ModelError(code, says)
        if len(self._context) <= 1:
            return ContextFull(compacted=False)
        # Letta compacts the context and tries again; the summary shows up as a user message
        alert = {"type": "system_alert", "message": "Note: prior messages have been hidden from view."}
        note = rows.input_row(self.run_, {"role": "user", "content": json.dumps(alert, indent=2)})
        self._context = self._context[:1]
        self._fresh = []
        self._persist([note], None)
        self._emit_row(note)
        return ContextFull(compacted=True)

    # storing and telling

    def _persist(self, stored: list[Row], step: Step | None) -> None:
        """Store messages. The thread's context becomes what this turn knew of it: another turn's part is lost."""
        db = self.core.db
        if db.agents.get(self.agent.id) is not self.agent:
            raise Vanished(step.id if step else new_id("step"), self.run_.id)
        for row in stored:
            row.conversation_id = None if self.conversation is None else self.conversation.id
            for item in row.items:
                if step is not None and item["step_id"] is None:
                    item["step_id"] = step.id
        db.store(stored, self._context)
        if step is not None:
            self._fresh = []
        if self.conversation is None:
            self.agent.message_ids = list(self._context)
        else:
            self.conversation.context = list(self._context)

    def _check_cancelled(self) -> None:
        if self.order.streaming and self.run_.status == "cancelled":
            raise Cancelled

    def _emit(self, payload: Json | str) -> None:
        if self.log is None:
            return
        if isinstance(payload, dict) and self.order.types is not None:
            kind = payload["message_type"]
            if kind.endswith("_message") and kind != "error_message" and kind not in self.order.types:
                return
        self.log.append(payload)

    def _emit_row(self, row: Row) -> None:
        """Show a message whole."""
        self._out.extend(row.items)
        for item in row.items:
            self._emit(item)

    def _show(self, row: Row) -> None:
        """Show what the model said, unless its pieces have gone out already."""
        if self.order.tokens:
            self._out.extend(row.items)
        else:
            self._emit_row(row)

    # ends

    async def _succeeded(self, stop: str) -> None:
        usage = shapes.usage_json(max(self._steps, 1), streamed_tokens=self.order.tokens)
        types = self.order.types
        self.result = {
            "messages": [item for item in self._out if types is None or item["message_type"] in types],
            "stop_reason": {"message_type": "stop_reason", "stop_reason": stop},
            "usage": usage,
            "logprobs": None,
            "turns": None,
        }
        self._emit({"message_type": "stop_reason", "stop_reason": stop})
        self._emit(usage)
        self._emit(DONE)
        self._over(stop)
        await self._settle("completed", stop)

    async def _failed(self, failure: TurnFailure) -> None:
        stop = failure.stop_reasons[-1]
        message = failure.error_message(self.run_.id)
        for reason in failure.stop_reasons:
            self._emit({"message_type": "stop_reason", "stop_reason": reason})
        self._emit(message)
        background = self.log is not None and self.log.numbered
        if failure.done and not background:
            self._emit(DONE)
        self.error = failure.http(agents_route=self.order.agents_route)
        self._over(stop)
        status = "failed" if background or not self.order.streaming else failure.status
        if status == "failed" and self.order.tracked:
            seen = {**message, "seq_id": None} if self.order.streaming else str(failure)
            self.run_.metadata = {**self.run_.metadata, "error": seen}
        recorded = stop if self.order.streaming or self.run_.background else None
        await self._settle(status, recorded)

    async def _cancelled(self) -> None:
        self._emit(CANCELLED)
        background = self.log is not None and self.log.numbered
        if background:
            self._emit(DONE)
        self._over("cancelled")
        if self.log is not None:
            self.log.close()
        if background:
            # a foreground stream leaves its lock: cancelling has freed that of a conversation, not the main thread's
            self.core.db.release(self.run_.lock_key)

    async def _settle(self, status: str, stop: str | None) -> None:
        """Record the end of the run; the client has read the last event by then."""
        numbered = self.log is not None and self.log.numbered
        if self.log is not None and numbered:
            self.log.close()
        await asyncio.sleep(self.core.settings.lag)
        self.core.db.release(self.run_.lock_key)
        if self.order.tracked:
            self.run_.status, self.run_.stop_reason = status, stop
            self.run_.completed_at = now()
        self.agent.updated_at = now()
        self.agent.last_stop_reason = stop or self.agent.last_stop_reason
        if self.log is not None:
            self.log.close()

    def _over(self, outcome: str) -> None:
        if self._turn is not None and self._turn.ended_at is None:
            self._turn.ended_at = time.monotonic()
            self._turn.outcome = outcome


def recompile(row: Row | None, agent: Agent, memory: dict[str, str]) -> str:
    """Write the memory into the system prompt at the head of a thread; returns the prompt."""
    prompt = shapes.system_prompt(agent, memory, now())
    if row is not None:
        row.text = prompt
        row.items = [{**item, "content": prompt} for item in row.items]
    return prompt
