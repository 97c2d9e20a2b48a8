"""Commands about what Letta lists: ``sync``, ``guard`` and ``rebind``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.rooms import doubt_all
from ..ids import AgentID
from ..jobs.steps import ANOTHER_LETTA
from ..letta.backend import Agent
from ..letta.errors import Kind, LettaError
from ..mirror.guard import Frozen
from ..mirror.names import shown_name
from ..mirror.refresh import PassResult
from ..mirror.replace import FULL_CHECK
from ..mirror.space import ask_for_another
from . import confirm, lookup, parse
from .begin import begin, nothing_else
from .call import Call
from .show import bullets, count, escape, name_of, portal_link
from .table import Arg, Command, CommandError, Need, Option, Reply

_GROUP = "Letta's agents"
_SECONDS = 20.0
_SHOWN = 30
_DID = {
    "added": "new",
    "changed": "changed",
    "missing": "missing now",
    "archived": "archived",
    "back": "back",
}
_SAME_SPACE = (
    "No other space was made: that happens only when the present one is gone, or the bot is not in it any more."
)
_HELD = {
    "unknown": "Letta could not be asked which Letta it is, so nobody was taken away.",
    "incomplete": "Letta's list broke off, so nobody was taken away.",
}


# -- sync


async def _sync(call: Call) -> Reply:
    desk, full = call.desk, bool(call.args["full"])
    if full:
        await desk.settings.stamp(FULL_CHECK)
    space = desk.directory.space_room
    if call.args["new-space"]:
        if space is None:
            raise CommandError("There is no space yet; the bridge makes it by itself.")
        await ask_for_another(desk.settings, space)

    async def ask(conn: Connection) -> int:
        if full:
            await doubt_all(conn)
        return await desk.directory.refreshes.ask(conn)

    number = await desk.db.write(ask)
    desk.directory.refreshes.wake()
    reply = _told(await desk.directory.refreshes.wait(number, _SECONDS), number, full)
    if call.args["new-space"] and reply.ok and desk.directory.space_room == space:
        return replace(reply, text=f"{reply.text} {_SAME_SPACE}")
    return reply


def _told(result: PassResult | None, number: int, full: bool) -> Reply:
    if result is None:
        return Reply("The comparison is still under way; `status` shows how far it is.", data={"pass": number})
    data = {"pass": result.number, **result.changes, "trouble": result.trouble}
    if result.trouble:
        text = f"The comparison could not be finished ({result.trouble}). It is tried again by itself."
        return Reply(text, data=data, ok=False)
    return Reply(" ".join(_sentences(result.changes, full)), data=data)


def _sentences(changes: Mapping[str, Any], full: bool) -> list[str]:
    did = [f"{changes[key]} {word}" for key, word in _DID.items() if changes[key]]
    said = [f"Compared with Letta: {', '.join(did)}." if did else "Compared with Letta: nothing has changed."]
    if full:
        said.append("Every room was looked at too.")
    frozen = changes["frozen"]
    if frozen in _HELD:
        said.append(_HELD[frozen])
    elif frozen:
        said.append("The guard holds something back; `guard` shows what.")
    return said


# -- guard


async def _guard(call: Call) -> Reply:
    frozen = (await call.desk.directory.guard.read()).frozen
    if frozen is None:
        return Reply("Nothing is frozen: what Letta lists is plausible.", data={"frozen": None})
    rows = {row.agent_id: row for row in await call.desk.agents.all()}
    gone = [_line(agent_id, rows.get(agent_id)) for agent_id in frozen.gone[:_SHOWN]]
    if len(frozen.gone) > _SHOWN:
        gone.append(f"… and {len(frozen.gone) - _SHOWN} more")
    text = frozen.text
    if gone:
        text += f"\n\nConfirming takes away exactly these ({count(len(frozen.gone), 'agent')}):\n\n{bullets(gone)}"
    return Reply(text, data={"frozen": _data(frozen)})


def _line(agent_id: AgentID, row: AgentRow | None) -> str:
    return f"`{agent_id}`" if row is None else f"{name_of(row)}: `{agent_id}`"


def _data(frozen: Frozen) -> dict[str, Any]:
    return {
        "why": frozen.why,
        "nonce": frozen.nonce,
        "gone": list(frozen.gone),
        "known": frozen.known,
        "listed": frozen.listed,
    }


async def _confirm(call: Call) -> Reply:
    desk, nonce = call.desk, call.args["nonce"].strip().casefold()

    async def work(conn: Connection) -> tuple[bool, int]:
        if not await desk.directory.guard.confirm(conn, nonce):
            return False, 0
        return True, await desk.directory.refreshes.ask(conn)

    done, number = await desk.db.write(work)
    if not done:
        if (await desk.directory.guard.read()).frozen is None:
            raise CommandError("Nothing is frozen, so there is nothing to confirm.")
        raise CommandError(f"{parse.shown(nonce)} is not what is asked about now. `guard` shows what is, and the word.")
    desk.directory.refreshes.wake()
    result = await desk.directory.refreshes.wait(number, _SECONDS)
    reply = _told(result, number, False)
    return Reply(f"Confirmed. {reply.text}", data=reply.data)


# -- rebind


async def _rebind(call: Call) -> Reply:
    desk, old = call.desk, call.args["old"]
    if (mine := await desk.jobs.by_key(f"rebind|{call.key}")) is not None:
        return Reply(f"That is job {mine.job_id}.", data={"job": mine.job_id}, job=mine.job_id)
    await nothing_else(call, old.agent_id, "")
    if not await desk.directory.our_letta():
        raise CommandError(f"Nothing is moved now: {ANOTHER_LETTA}.")
    new = await _new_agent(call, old)
    if await _is_there(call, old.agent_id):
        raise CommandError(
            f"{name_of(old)} is still in Letta, so its place is taken. Delete it there first, or summon or rename "
            "instead."
        )
    if (preview := await _unconfirmed(call, old, new)) is not None:
        return preview
    args = {
        "old": old.agent_id,
        "new": new.id,
        "mxid": old.mxid,
        "shown": escape(shown_name(new.name, new.id)),
    }
    text = f"{args['shown']} gets the place of {name_of(old)}."
    return await begin(call, "rebind", args, agent=old.agent_id, text=text)


async def _unconfirmed(call: Call, old: AgentRow, new: Agent) -> Reply | None:
    """Who would get whose place, with the line to type; None once that line was typed."""
    desk, given, what = call.desk, call.args[confirm.CONFIRM.name], f"{old.agent_id}|{new.id}"
    if given is not None:
        if await confirm.confirmed(call, given, what):
            return None
        raise CommandError(confirm.REFUSED)
    chats = int(await desk.db.fetchval("SELECT COUNT(*) FROM conversation WHERE agent_id = $1", old.agent_id))
    shown = escape(shown_name(new.name, new.id))
    lines = [
        f"from: {name_of(old)}, `{old.agent_id}` ({old.state}), which Letta does not have any more",
        f"to: {shown}, `{new.id}`",
        f"its user {old.mxid}, {portal_link(old, 'its room') or 'no room'}, {count(chats, 'further chat')}, its owner "
        f"({old.owner or 'nobody'}), its permissions, and the messages that wait",
    ]
    own = await desk.agents.get(new.id)
    if own is not None and own.portal_room is not None:
        link = portal_link(own, "room")
        lines.append(f"the {link} that {shown} has until now is archived, and its chats there end")
    nonce = await confirm.ask(call, what)
    text = (
        f"**{shown} would get the place of {name_of(old)}**, and nothing takes that back:\n\n{bullets(lines)}\n\n"
        f"{confirm.how(call, nonce)}"
    )
    return Reply(text, data={"old": old.agent_id, "new": new.id, "confirm": nonce})


async def _new_agent(call: Call, old: AgentRow) -> Agent:
    """The agent that is to take the place: one that Letta has now.

    Raises:
        CommandError: there is none such, or several.
    """
    text = call.args["new"].strip()
    rows = [row for row in await call.desk.agents.all() if row.agent_id != old.agent_id]
    living = [row for row in rows if row.state != "archived"]
    try:
        agent_id = lookup.choose(living, text).agent_id
    except CommandError:
        if not text.startswith("agent-"):  # it may not be mirrored (yet), then only its id names it
            raise
        agent_id = AgentID(text)
    if agent_id == old.agent_id:
        raise CommandError("That is the same agent; name the new one.")
    try:
        return await call.desk.backend.get_agent(agent_id)
    except LettaError as error:
        if error.kind in (Kind.AGENT_GONE, Kind.REJECTED):
            raise CommandError(f"Letta has no agent {parse.shown(text)}.") from None
        raise


async def _is_there(call: Call, agent_id: AgentID) -> bool:
    try:
        await call.desk.backend.get_agent(agent_id)
    except LettaError as error:
        if error.kind is not Kind.AGENT_GONE:  # a refusal says nothing of the agent
            raise
        return False
    return True


COMMANDS = (
    Command(
        "sync",
        "compares Letta's agents with Matrix now instead of within a minute",
        Need.ADMIN,
        _sync,
        _GROUP,
        options=(
            Option("full", "also looks at the state of every room and repairs what is damaged", switch=True),
            Option("new-space", "makes another space in place of one that is gone or lets nobody in", switch=True),
        ),
        examples=("sync", "sync --full"),
        changes=True,
    ),
    Command(
        "guard",
        "shows what the bridge does not believe of Letta's list, and who is gone",
        Need.ADMIN,
        _guard,
        _GROUP,
        details=(
            "When many agents disappear at once, all of them do, or another Letta answers, nothing is taken away "
            "before an administrator has said that it is meant. It ends by itself when the agents are listed again."
        ),
        private=True,
    ),
    Command(
        "guard confirm",
        "says that the agents which are gone are meant to be gone, or that this Letta is the right one",
        Need.ADMIN,
        _confirm,
        _GROUP,
        (Arg("nonce", "text", "the word that `guard` shows"),),
        details="It is about exactly the agents that `guard` showed with this word, not about who is gone later.",
        examples=("guard confirm 4f2a",),
        changes=True,
        private=True,
    ),
    Command(
        "rebind",
        "gives an agent that was made anew in Letta the room, the chats and the Matrix user of the old one",
        Need.ADMIN,
        _rebind,
        _GROUP,
        (
            Arg("old", "agent", "the agent that is gone from Letta"),
            Arg("new", "text", "the one that takes its place: its id, or its name", rest=True),
        ),
        (confirm.CONFIRM,),
        details=(
            "It first shows who would get whose place, and is done when the line shown is typed. Messages that wait "
            "are answered by the new agent, which also gets the owner and the permissions of the old one. If it had a "
            "room of its own already, that one is archived and points to the old one. What the old agent remembered is "
            "not moved: that is Letta's."
        ),
        examples=('rebind "Ada (old)" Ada', "rebind agent-1111… agent-2222…"),
        changes=True,
    ),
)
