"""Every sentence about trouble that a person can meet, declared once: what it says and what becomes of the message.

"was not delivered" and "may not have been delivered" are different sentences; which one is said is decided by what is
known, never by what is likely.
"""

from dataclasses import dataclass
from enum import Enum

from .letta.errors import Kind


class Fate(Enum):
    """What the bridge does with a message after a failure."""

    WAIT = "wait"  # kept and tried again for as long as it takes; the other side is down or busy
    RETRY = "retry"  # tried again a few times, then given up
    GIVE_UP = "give_up"  # not delivered, and trying again would not help


@dataclass(frozen=True, slots=True)
class Trouble:
    """A failure as the sender learns of it. Sentences speak in the agent's voice; ``{minutes}`` may be filled in."""

    fate: Fate
    sentence: str
    recovery: str = ""
    """Said once when the wait is over; empty where the answer itself is enough."""


TROUBLES: dict[Kind, Trouble] = {
    Kind.UNREACHABLE: Trouble(
        Fate.WAIT,
        "I cannot reach Letta right now. Your message is kept, and I will answer as soon as Letta is back.",
        "Letta is back; I am answering now.",
    ),
    Kind.BAD_KEY: Trouble(
        Fate.WAIT,
        "Letta does not accept the bridge's key, so I cannot work. Your message is kept; an administrator of the "
        "bridge has to correct the key.",
        "Letta accepts the bridge's key again; I am answering now.",
    ),
    Kind.BUSY: Trouble(
        Fate.WAIT,
        "I am still busy with another run in Letta. Your message waits for its turn.",
    ),
    Kind.APPROVAL: Trouble(
        Fate.WAIT,
        "I am waiting for somebody to approve a tool call and cannot take your message before that. It is kept. "
        "Say !stop to deny the call and drop the message.",
    ),
    Kind.MODEL: Trouble(
        Fate.RETRY,
        "The model behind me failed several times. Your message was not answered; please send it again later.",
    ),
    Kind.MODEL_REFUSED: Trouble(
        Fate.GIVE_UP,
        "The provider of my model refused the request (its key, its quota, or the request itself). Your message was "
        "not answered; an administrator of Letta can find the reason there.",
    ),
    Kind.CONTEXT_FULL: Trouble(
        Fate.GIVE_UP,
        "My conversation no longer fits into the model's context. Your message was not answered; a shorter message "
        "may work, or an administrator has to compact the conversation in Letta.",
    ),
    Kind.AGENT_GONE: Trouble(
        Fate.GIVE_UP,
        "This agent does not exist in Letta any more. Your message was not delivered.",
    ),
    Kind.NOT_OURS: Trouble(
        Fate.WAIT,
        "I cannot be found in the Letta that answers now. Your message is kept; an administrator of the bridge has "
        "been asked what that means.",
    ),
    Kind.CONVERSATION_GONE: Trouble(
        Fate.RETRY,
        "The conversation of this room disappeared in Letta, and I could not open another. Your message was not "
        "delivered.",
    ),
    Kind.NO_MODEL: Trouble(
        Fate.GIVE_UP,
        "Letta does not offer the model that was asked for. Nothing was done; an administrator of Letta can say which "
        "models there are.",
    ),
    Kind.REJECTED: Trouble(
        Fate.GIVE_UP,
        "Letta refused your message. It was not delivered.",
    ),
    Kind.TIMEOUT: Trouble(
        Fate.GIVE_UP,
        "I did not finish within {minutes} and was stopped. What you see of the answer is all there is.",
    ),
    Kind.INTERRUPTED: Trouble(
        Fate.RETRY,
        "The connection to Letta broke several times while I was answering. Your message was not answered.",
    ),
    Kind.INTERNAL: Trouble(
        Fate.RETRY,
        "Something unexpected failed in Letta. Your message was not answered; please send it again later.",
    ),
}

ABOUT_LETTA: dict[Kind, str] = {
    Kind.UNREACHABLE: "Letta cannot be reached",
    Kind.BAD_KEY: "Letta refuses the bridge's key (letta.api_key)",
    Kind.BUSY: "the agent is busy with another run",
    Kind.APPROVAL: "a tool call of the agent waits for an approval",
    Kind.MODEL: "the model behind Letta fails",
    Kind.MODEL_REFUSED: "the model's provider refused the request",
    Kind.CONTEXT_FULL: "the agent's conversation no longer fits its model",
    Kind.AGENT_GONE: "Letta has no such agent",
    Kind.NOT_OURS: "Letta has no such agent, and it is not decided what that means ('guard')",
    Kind.CONVERSATION_GONE: "Letta has no such conversation",
    Kind.NO_MODEL: "Letta does not offer that model, or has none at all",
    Kind.REJECTED: "Letta refused the request",
    Kind.TIMEOUT: "Letta did not answer in time",
    Kind.INTERRUPTED: "the connection to Letta broke off",
    Kind.INTERNAL: "something unexpected failed in Letta",
}
"""The same troubles in the bridge's own words, for admins."""

MAY_NOT_HAVE_BEEN_DELIVERED = (
    "Your message may not have been delivered: Letta failed at the wrong moment and cannot say whether it has it. "
    "It is not sent again by itself, so that nothing happens twice. If it matters, please send it again."
)
LOST_IN_RESTORE = (
    "The bridge was restored from a backup while I was answering, and Letta cannot say what became of your message. It "
    "may not have been delivered. It is not sent again by itself, so that nothing happens twice. If it matters, please "
    "send it again."
)
ASKS_APPROVAL = (
    "I want to use the tool “{tool}”, and that needs an approval, which cannot be given from Matrix yet. "
    "Say !stop to deny it, or decide in Letta."
)
LOOKING = (
    "The connection to Letta broke while I was taking your message, and Letta does not say yet whether I have it. I am "
    "finding out; your message is not handed over twice."
)
FAILED_MIDWAY = (
    "I read your message, but something failed in the middle of my work, after I had begun to use tools. I do not "
    "start again by myself, so that nothing is done twice; ask me to go on."
)
CANCELLED_IN_LETTA = "it was cancelled in Letta"
SAID_NOTHING = "(I finished without saying anything.)"
STOPPED_EARLY = "(My answer ended early: {reason}.)"

MAY_NOT_TALK = (
    "You are not allowed to talk to this agent. Your message was not delivered, nor will others be. An administrator "
    "of the bridge can allow {who} in its configuration (permissions){or_else}."
)
MAY_NOT_COMMAND = (
    "You are not allowed to use this bridge, so what you write here is not read. An administrator of the bridge can "
    "allow {who} in its configuration (permissions){or_else}."
)
MAY_NOT_INVITE = (
    "You are not allowed to talk to the agents of this bridge, so I am leaving. An administrator of the bridge can "
    "allow {who} in its configuration (permissions){or_else}."
)
MAY_NOT_TALK_HERE = (
    "You are not allowed to talk to {what}: that was decided for {by}. Your message was not delivered, nor will others "
    "be. The agent's owner or an administrator of the bridge can allow it with "
    "`!letta permissions grant {who} user {name}`."
)
MAY_NOT_BRING = (
    "You are not allowed to talk to this agent, so I am leaving. The agent's owner or an administrator of the bridge "
    "can allow it with `!letta permissions grant {who} user {name}`."
)
MAY_NOT_STOP = (
    "You are not allowed to stop this agent. An administrator of the bridge can allow it in its configuration "
    "(permissions){or_else}."
)


def or_grant(who: str, name: str = "") -> str:
    """What allows the same for one agent (``name``), or any one; what a refusal adds where it would help."""
    what = "this agent alone" if name else "one agent or room"
    return f", or with {what} by `!letta permissions grant {who} user {name or '<agent or room>'}`"


ABSENT = {
    "missing": (
        "I am not in Letta at the moment, or the bridge's configuration leaves me out. Your message was not delivered; "
        "please send it again when my name here is no longer marked as offline."
    ),
    "archived": (
        "I am archived: I am not in Letta any more, or was despawned. Your message was not delivered, and nothing that "
        "is said here reaches me. An administrator of the bridge can tell more."
    ),
}
"""What an agent says that nothing can reach, by the state of its row."""
NO_SUCH_AGENT = "There is no such agent on the connected Letta, so nobody would answer here."
TOO_FAST = (
    "You have sent more than {limit} messages within a minute. This one was not delivered, and for the next minute I "
    "do not tell you about others over that limit. Please wait, and send again what got no answer."
)
AMBIGUOUS = "More than one member of this room is called {names}, so nobody was addressed. Please use a mention (pill)."
UNSUPPORTED = "I cannot receive {things} yet. What you sent was not delivered to me, nor will others be."
EDIT_TOO_LATE = (
    "I have already read that message, and I cannot take edits of such messages yet, neither this one nor later ones. "
    "Please say it anew."
)
EDITED_TO_COMMAND = (
    "Edits are no commands. The message was taken back before the agent had read it; please send the command anew."
)
RESTORED_COMMAND = (
    "The bridge was restored from a backup. It does not know which commands of the time since then were carried out, "
    "and repeats none. If one is still wanted, please give it again."
)
RESTORED_LIMIT = (
    "The bridge was restored from a backup and has read the last {limit} messages of this room. Older ones that were "
    "written since the backup may have got no answer; please send again what is still of interest."
)
ENCRYPTED = (
    "I cannot read encrypted messages yet, so nothing that is said here reaches me. Please start a chat with me in a "
    "room without encryption (when creating the room, switch “Enable end-to-end encryption” off). Agents also have "
    "rooms of their own without encryption; the bridge's space lists them."
)
ENCRYPTED_BOT = (
    "I cannot read encrypted messages yet, so commands that are written here do not reach me. Please start a chat with "
    "me in a room without encryption; administrators write `set-management-room` there, or use `letta-bridge ctl` on "
    "the bridge's machine."
)
STOP_NOTHING = "There was nothing to stop."
_RUN_STOPPED = "what I was doing was cancelled"
_RUN_CUT_OFF = "what I was doing ends here, but Letta did not confirm the cancellation, so it may go on there"
_RUN_FINISHED = "what I was doing was finished already"
_APPROVAL_DENIED = "the tool call that waited for approval was denied"
_WITHDRAWN = "what waited for me was withdrawn"
_DEAF = (
    "Letta does not answer, so I could not see whether a tool call of mine waits for approval; say !stop again later"
)
UNDISPATCHED = "Something went wrong inside the bridge, and this message could not be handled. It was not delivered."
NOT_SHOWN = "I have answered, but the homeserver did not take my answer, so it cannot be shown here."


def paused(subject: str, *, by_owner: bool, reason: str) -> str:
    """What a room is told whose message waits because of a pause (``all``, ``agent:…`` or ``room:…``)."""
    what = {"all": "All agents are", "room": "In this room agents are"}.get(subject.partition(":")[0], "I am")
    who = "my owner" if by_owner else "an administrator"
    why = f" ({reason})" if reason else ""
    return f"{what} paused by {who}{why}. Your message is kept, and I answer it as soon as that is over."


def stopped(
    *,
    run: bool,
    withdrawn: bool,
    denied: bool = False,
    unsure: bool = False,
    deaf: bool = False,
    finished: bool = False,
) -> str:
    """What a stop has done. ``unsure``: Letta did not confirm that the run is cancelled. ``deaf``: Letta could not be
    asked about approvals. ``finished``: the run was over before it could be cancelled.
    """
    run_part = _RUN_FINISHED if finished else _RUN_CUT_OFF if unsure else _RUN_STOPPED
    done = ((run, run_part), (denied, _APPROVAL_DENIED), (withdrawn, _WITHDRAWN))
    parts = [part for happened, part in done if happened]
    said = f"Stopped: {', '.join(parts)}." if parts else "" if deaf else STOP_NOTHING
    return f"{said} ({_DEAF}.)".strip() if deaf else said
