"""Commands about an agent's life: ``summon``, ``despawn``, ``recall``, ``rename``."""

import contextlib
import unicodedata

from ..config.kinds import Template
from ..db.agents import AgentRow
from ..db.jobs import JobRow
from ..errors import ABOUT_LETTA
from ..ids import MXID, AgentID
from ..jobs.summon import persona_with
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.directory import LANE as MIRROR_LANE
from ..mirror.names import LONGEST_NAME, shown_name
from ..mirror.trouble import MirrorError
from . import confirm, parse
from .begin import begin, nothing_else, several
from .call import CTL, Call
from .show import bullets, count, escape, name_of, portal_link
from .table import Arg, Command, CommandError, Need, Option, Reply

_GROUP = "Agents' lives"
_OURS = ("summoned", "adopted")
_NOBODY = AgentID("agent-x")
_SHOWN_MODELS = 15
_JOBS = 200


# -- summon


async def _summon(call: Call) -> Reply:
    name = checked_name(call, call.args["name"])
    template = _template(call)
    model = call.args["model"] or template.model
    await _check_model(call, model)
    tags, notes = _tags(call, name, (*template.tags, *several(call.args["tags"])))
    owner = call.args["owner"] or ("" if call.who == CTL else call.who)
    if call.desk.directory.is_ours(MXID(owner)):
        raise CommandError("The owner has to be a person, not one of the bridge's own users.")
    await _not_twice(call, name, owner)
    args = {
        "name": name,
        "shown": escape(shown_name(name, _NOBODY)),
        "persona": persona_with(template) if call.args["persona"] is None else _persona(call, template),
        "human": template.human if call.args["human"] is None else call.args["human"],
        "description": template.description if call.args["description"] is None else call.args["description"],
        "tags": list(tags),
        "model": model,
        "traits": dict(template.traits),
        "owner": owner,
        "invite": list(dict.fromkeys(who for who in ("" if call.who == CTL else call.who, owner) if who)),
        "room": call.args["room"] or "",
        "notes": [*notes, *await _namesakes(call, name)],
    }
    return await begin(call, "summon", args, text=f"Summoning {args['shown']}.")


async def _not_twice(call: Call, name: str, owner: str) -> None:
    """One line that is sent twice makes one agent.

    Raises:
        CommandError: this owner has summoned an agent of that name; it says where that one is.
    """
    if call.args["another"] or await call.desk.jobs.by_key(f"summon|{call.key}") is not None:
        return
    again = "To have another one of that name, add `--another`."
    for job in await call.desk.jobs.newest(_JOBS, only_open=True):
        if job.kind == "summon" and job.state == "open" and (job.args["name"], job.args["owner"]) == (name, owner):
            raise CommandError(f"{job.args['shown']} is being summoned already (job {job.job_id}). {again}")
    for row in await call.desk.agents.all():
        if row.origin == "summoned" and row.state != "archived" and (row.name, row.owner or "") == (name, owner):
            link = portal_link(row, "its room") or f"`{row.agent_id}`"
            raise CommandError(f"There is already an agent called {name_of(row)} ({link}). {again}")


def checked_name(call: Call, text: str) -> str:
    """A name that an agent may be given.

    Raises:
        CommandError: it cannot; says why.
    """
    name = " ".join(text.split(" ")).strip()
    if not name:
        raise CommandError("An agent needs a name.")
    for word in name.split():
        if word.startswith(("--", "—")) and len(word.lstrip("-—")) > 1:
            meant = parse.did_you_mean(word.lstrip("-—"), [option.name for option in call.command.options])
            raise CommandError(f"There is no option {parse.shown(word)}.{meant}")
    if len(name) > LONGEST_NAME:
        raise CommandError(f"That name has {len(name)} characters; at most {LONGEST_NAME} can be shown in Matrix.")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        raise CommandError("A name is one line without control characters.")
    if shown_name(name, _NOBODY) == shown_name("", _NOBODY):
        raise CommandError("Nothing of that name would be visible; an agent needs one that is.")
    return name


def _template(call: Call) -> Template:
    name, known = call.args["template"], call.desk.config.templates
    if name is None:
        return Template()
    found = next((template for key, template in known.items() if key.casefold() == name.casefold()), None)
    if found is not None:
        return found
    if not known:
        raise CommandError("There are no templates; the configuration has a section for them (`templates`).")
    listed = ", ".join(f"`{key}`" for key in known)
    raise CommandError(
        f"There is no template {parse.shown(name)}.{parse.did_you_mean(name, known)} There are: {listed}."
    )


def _persona(call: Call, template: Template) -> str:
    """The persona that was asked for, with the traits of the template."""
    return persona_with(Template(persona=call.args["persona"], traits=template.traits))


async def _check_model(call: Call, model: str) -> None:
    if not model:
        return
    try:
        known = list(await call.desk.backend.models())
    except LettaError:
        return  # the job waits for Letta, and says what it thinks of the model
    if model not in known:
        few = known if len(known) <= _SHOWN_MODELS else [*known[:_SHOWN_MODELS], "…"]
        listed = ", ".join(f"`{name}`" for name in few) or "none at all"
        meant = parse.did_you_mean(model, known)
        raise CommandError(f"Letta offers no model {parse.shown(model)}.{meant} It offers: {listed}.")


def _tags(call: Call, name: str, tags: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """The tags with which the mirror shows an agent of that name, and what is to be said of it.

    Raises:
        CommandError: it would not show it with any.
    """
    letta, tags = call.desk.config.letta, tuple(dict.fromkeys(tags))
    if letta.wants("", name, tags):
        return tags, []
    if letta.exclude.matches("", name, tags):
        raise CommandError(
            "The configuration leaves agents with that name or one of these tags out (letta.exclude), so nobody would "
            "see it. Nothing was made."
        )
    for tag in letta.include.tags:
        if letta.wants("", name, (*tags, tag)):
            return (*tags, tag), [f"It was given the tag `{tag}`, without which the bridge would not show it."]
    raise CommandError(
        "The configuration shows only certain agents (letta.include), and a new one with that name is none of them. "
        f"Nothing was made. Names that are shown: {', '.join(map(parse.shown, letta.include.names)) or 'none'}."
    )


async def _namesakes(call: Call, name: str, but: str = "") -> list[str]:
    """A sentence about other agents of that name."""
    rows = await call.desk.agents.all()
    same = [row for row in rows if row.agent_id != but and row.state != "archived"]
    same = [row for row in same if row.name.casefold() == name.casefold()]
    if not same:
        return []
    ids = ", ".join(f"`{row.agent_id}`" for row in same[:3])
    return [f"There is already an agent called {name_of(same[0])} ({ids}); both are distinct."]


# -- despawn and recall


async def _despawn(call: Call) -> Reply:
    agent: AgentRow = call.args["agent"]
    delete = bool(call.args["delete-agent"])
    await _nothing_else(call, agent)
    begun = await call.desk.jobs.by_key(f"despawn|{call.key}") is not None  # carried out again after a crash
    if not begun and (preview := await _preview(call, agent, delete)) is not None:
        return preview
    args = {
        "agent_id": agent.agent_id,
        "shown": name_of(agent),
        "delete": delete,
        "before": agent.state,
        "dismissed": agent.dismissed,
    }
    verb = "Deleting" if delete else "Despawning"
    return await begin(call, "despawn", args, agent=agent.agent_id, text=f"{verb} {name_of(agent)}.")


async def _preview(call: Call, agent: AgentRow, delete: bool) -> Reply | None:
    """What is answered instead of beginning; None when the agent may go.

    Raises:
        CommandError: it may not.
    """
    if not delete and call.args["confirm"] is not None:
        raise CommandError("Only `--delete-agent` has to be confirmed.")
    if not delete and agent.dismissed:
        raise CommandError(f"{name_of(agent)} is despawned already; `recall {agent.agent_id}` brings it back.")
    if delete and agent.origin not in _OURS:
        raise CommandError(
            f"{name_of(agent)} was neither summoned nor adopted by the bridge, so the bridge does not delete it. "
            f"Delete it in Letta; or `despawn {agent.agent_id}` alone takes it out of Matrix."
        )
    if delete and agent.dismissed and (job := await _deleted_by(call, agent)) is not None:
        raise CommandError(f"{name_of(agent)} is deleted in Letta already (job {job.job_id}).")
    return await _unconfirmed(call, agent) if delete else None


async def _deleted_by(call: Call, agent: AgentRow) -> JobRow | None:
    """The job that has deleted the agent in Letta."""
    for job in await call.desk.jobs.newest(_JOBS):
        done = job.kind == "despawn" and job.state == "done" and job.args["delete"]
        if done and job.args["agent_id"] == agent.agent_id:
            return job
    return None


async def _nothing_else(call: Call, agent: AgentRow) -> None:
    """No other job works on the agent.

    Raises:
        CommandError: one does.
    """
    await nothing_else(call, agent.agent_id, f"{call.command.name}|{call.key}")


async def _unconfirmed(call: Call, agent: AgentRow) -> Reply | None:
    """What would be lost, with the line to type; None once that line was typed."""
    given = call.args["confirm"]
    if given is not None and await confirm.confirmed(call, given, agent.agent_id):
        return None
    if given is not None:
        raise CommandError(confirm.REFUSED)
    phrase = _phrase(agent)
    nonce = await confirm.ask(call, agent.agent_id, phrase)
    db = call.desk.db
    messages = await db.fetchval("SELECT COUNT(*) FROM turn_event WHERE agent_id = $1", agent.agent_id)
    rooms = await db.fetchval("SELECT COUNT(*) FROM conversation WHERE agent_id = $1", agent.agent_id)
    lines = [
        f"owner: {agent.owner or 'nobody'}",
        f"tags: {', '.join(agent.tags) or 'none'}",
        f"{count(messages, 'message')} to it through this bridge, in {count(rooms + 1, 'conversation')}",
        f"id: `{agent.agent_id}`",
    ]
    text = (
        f"**{name_of(agent)} would be deleted in Letta for ever**, with its memory and its whole history there:\n\n"
        f"{bullets(lines)}\n\nIts room in Matrix would stay readable. `despawn {agent.agent_id}` without "
        f"`--delete-agent` keeps it in Letta.\n\n{confirm.how(call, nonce, phrase)}"
    )
    return Reply(text, data={"agent": agent.agent_id, "confirm": f"{nonce} {phrase}", "messages": messages})


def _phrase(agent: AgentRow) -> str:
    """What is typed to confirm: the agent's name as it is read back, or its id where that is no use."""
    with contextlib.suppress(CommandError):
        words = [word.text for word in parse.of_text(agent.name).words]
        again = [word.text for word in parse.of_text(" ".join(words)).words]
        if words and " ".join(words) == " ".join(again) and "`" not in agent.name and agent.name.isprintable():
            return " ".join(words)
    return agent.agent_id


async def _recall(call: Call) -> Reply:
    agent: AgentRow = call.args["agent"]
    await _nothing_else(call, agent)
    if not agent.dismissed and await call.desk.jobs.by_key(f"recall|{call.key}") is None:
        raise CommandError(f"{name_of(agent)} was not despawned; there is nothing to bring back.")
    try:
        await call.desk.backend.get_agent(agent.agent_id)
    except LettaError as error:
        if error.kind is Kind.AGENT_GONE:
            raise CommandError(
                f"{name_of(agent)} does not exist in Letta any more. `summon` makes a new agent; `rebind` gives it "
                "the old one's room."
            ) from None
        raise
    args = {"agent_id": agent.agent_id, "shown": name_of(agent)}
    return await begin(call, "recall", args, agent=agent.agent_id, text=f"{name_of(agent)} is being brought back.")


# -- rename


async def _rename(call: Call) -> Reply:
    agent: AgentRow = call.args["agent"]
    name, desk = checked_name(call, call.args["name"]), call.desk
    await _nothing_else(call, agent)
    if agent.state == "archived":
        raise CommandError(f"{name_of(agent)} is archived; `recall` it first.")
    if name in (agent.name, agent.shown_name) and agent.shown_name == shown_name(agent.name, agent.agent_id):
        return Reply(f"It is called {name_of(agent)} already.", data={"agent": agent.agent_id, "name": name})
    if not desk.config.letta.wants(agent.agent_id, name, agent.tags):
        raise CommandError(
            "With that name the configuration would not show the agent any more (letta.include, letta.exclude). "
            "Nothing was changed."
        )
    try:
        renamed = await desk.backend.rename_agent(agent.agent_id, name)
    except LettaError as error:
        raise CommandError(f"It was not renamed: {ABOUT_LETTA[error.kind]}.") from error
    notes = await _namesakes(call, name, agent.agent_id)
    follows = ""
    try:
        await desk.directory.staged.write_down(None, renamed)
        await desk.directory.staged.rest(None, agent.agent_id)
    except (HomeserverError, MirrorError):
        follows = " Its user and its room follow as soon as the homeserver takes that."
        desk.lanes.wake(MIRROR_LANE)
    text = f"{name_of(agent)} is now called {escape(name)}.{follows}"
    return Reply("\n\n".join([text, *notes]), data={"agent": agent.agent_id, "name": name, "shown": not follows})


_SUMMON_OPTIONS = (
    Option("template", "a preset of the configuration: persona, human, description, model, tags, traits"),
    Option("persona", "who the agent is, in its own words, instead of the template's"),
    Option("human", "what the agent knows of the people it talks to"),
    Option("model", "the handle of its model, such as `openai/gpt-4o`; else the one most agents use"),
    Option("description", "one line about it; becomes the topic of its room"),
    Option("tags", "tags in Letta, separated by commas"),
    Option("room", "a room that it joins besides its own", "room"),
    Option("owner", "who may despawn and rename it; else who asks", "user"),
    Option("another", "also if you have summoned one of that name already", switch=True),
)

COMMANDS = (
    Command(
        "summon",
        "makes a new agent in Letta with its Matrix user and its room, and invites you",
        Need.ADMIN,
        _summon,
        _GROUP,
        (Arg("name", "text", "what the agent is called", rest=True),),
        _SUMMON_OPTIONS,
        details=(
            "The work is a job: it goes on after a restart, waits for Letta or the homeserver when they are away, and "
            "is taken back when it cannot be finished. The agent always gets a room of its own; with `--room` it also "
            "joins that one. For that the bot has to be there and be allowed to invite; else the reply says whom to "
            "invite.\n\nWho summoned an agent, or is named with `--owner`, owns it: owners may `rename`, `despawn` and "
            "`recall` it, and always talk to it."
        ),
        examples=("summon Ada", 'summon Ada --template scout --persona "I look things up."'),
        changes=True,
    ),
    Command(
        "despawn",
        "takes an agent out of Matrix; in Letta it stays, unless you say otherwise",
        Need.OWNER,
        _despawn,
        _GROUP,
        (Arg("agent", "agent", "which agent"),),
        (
            Option("delete-agent", "delete it in Letta too, for ever; only agents summoned here", switch=True),
            confirm.CONFIRM,
        ),
        details=(
            "What it is doing is stopped, messages that wait are answered with a notice, its room is archived (it "
            "stays readable) and leaves the space, its profile is cleared. `recall` undoes that.\n\n"
            "`--delete-agent` first shows what would be lost; it is done when the line shown is typed, which ends with "
            "the agent's name."
        ),
        examples=("despawn Ada", "despawn Ada --delete-agent"),
        changes=True,
    ),
    Command(
        "recall",
        "brings a despawned agent back to its room",
        Need.OWNER,
        _recall,
        _GROUP,
        (Arg("agent", "agent", "which agent"),),
        examples=("recall Ada",),
        changes=True,
    ),
    Command(
        "rename",
        "gives an agent another name, in Letta and in Matrix",
        Need.OWNER,
        _rename,
        _GROUP,
        (Arg("agent", "agent", "which agent"), Arg("name", "text", "its new name", rest=True)),
        details="Its Matrix id, its room and its memory stay as they are. Put an old name with blanks into quotes.",
        examples=("rename Ada Lovelace", 'rename "Ada Lovelace" Ada'),
        changes=True,
    ),
)
