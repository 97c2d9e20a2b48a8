"""Where Tuwunel 1.9 answers otherwise than Synapse, one rule per difference.

A rule gets the call and what lies behind it, and gives the answer. The numbers of rules are the rows of the table in
docs/homeservers.md.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from ..fake_homeserver.appservice import AppService
from ..fake_homeserver.events import JSON
from ..fake_homeserver.flavour import TUWUNEL
from .call import Answer, Call, Onward
from .txns import ClientTxns, TxnKey


@dataclass(slots=True)
class Memory:
    """What the rules have to remember, and may ask Synapse for on their own account."""

    appservice: AppService
    txns: ClientTxns
    register: Callable[[str], Awaitable[bool]]
    """Makes a user of the namespace exist; whether it did not before."""
    seen: set[str] = field(default_factory=set)
    """Users that exist."""
    behind: set[str] = field(default_factory=set)
    """Of these, who was registered behind the appservice's back, and does not exist for it."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


Rule = Callable[[Call, Onward, Memory], Awaitable[Answer]]
RULES: list[tuple[str, re.Pattern[str], Rule]] = []
"""Method, path and rule; a call passes all that match, the first one outermost."""
REWRITTEN_ROWS: set[int] = {15}  # user queries are answered by the proxy's other side
_V3 = "/_matrix/client/(?:v3|r0)"
_DEVICES = re.compile(rf"{_V3}/(?:devices/|keys/)")


def rule(method: str, path: str, *rows: int) -> Callable[[Rule], Rule]:
    """Apply a rule to the calls of this method (``*``: any) whose path matches as a whole."""

    def enter(function: Rule) -> Rule:
        RULES.append((method, re.compile(path), function))
        REWRITTEN_ROWS.update(rows)
        return function

    return enter


async def apply(call: Call, onward: Onward, memory: Memory) -> Answer:
    """The call through all rules that match, then onward."""
    matching = [r for method, path, r in RULES if method in ("*", call.method) and path.fullmatch(call.path)]

    async def step(number: int, call: Call) -> Answer:
        if number == len(matching):
            return await onward(call)
        return await matching[number](call, lambda further: step(number + 1, further), memory)

    return await step(0, call)


# ---- who acts


@rule("*", ".*", 17)
async def foreign_users_are_exclusive(call: Call, onward: Onward, memory: Memory) -> Answer:
    """400 instead of 403."""
    if not memory.appservice.owns_user(call.user_id):
        return Answer.refusal(400, "M_EXCLUSIVE", "User is not in namespace.")
    return await onward(call)


@rule("*", f"{_V3}/(?!register$).*|/_matrix/(?!client/(?:v3|r0)/).*", 16, 18)
async def nobody_needs_to_be_registered(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Calls succeed as anybody of the namespace; only devices need a user that exists."""
    async with memory.lock:
        if call.user_id not in memory.seen and not _DEVICES.match(call.path):
            if await memory.register(call.user_id):
                memory.behind.add(call.user_id)
            memory.seen.add(call.user_id)
    if _DEVICES.match(call.path) and call.user_id in memory.behind:
        return Answer.refusal(400, "M_INVALID_PARAM", "User does not exist.")
    answer = await onward(call)
    if answer.status == 403 and "has not registered this user" in str(answer.json.get("error")):
        return Answer.refusal(400, "M_INVALID_PARAM", "User does not exist.")
    return answer


@rule("POST", f"{_V3}/register", 28)
async def new_ghosts_have_a_suffix(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Registering shows a name that nobody asked for; what was registered behind its back is new to the appservice."""
    user_id = f"@{str(call.json.get('username', '')).lower()}:{memory.appservice.domain}"
    answer = await onward(call)
    async with memory.lock:
        if user_id in memory.behind:
            memory.behind.discard(user_id)
            answer = Answer.of({"user_id": user_id, "home_server": memory.appservice.domain})
        if answer.fine:
            memory.seen.add(user_id)
    if answer.fine:
        name = user_id[1:].partition(":")[0] + TUWUNEL.new_name_suffix
        path = f"/_matrix/client/v3/profile/{user_id}/displayname"
        named = call.having(path=path, body={"displayname": name}).asking(user_id=user_id)
        await onward(_as("PUT", named))
    return answer


@rule("*", ".*", 19)
async def unknown_devices_are_invalid(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Another error code."""
    answer = await onward(call)
    if answer.json.get("errcode") == "M_UNKNOWN_DEVICE":
        return Answer.refusal(400, "M_INVALID_PARAM", "Unknown device for user.")
    return answer


# ---- rooms


@rule("POST", f"{_V3}/rooms/[^/]+/invite", 20)
async def inviting_the_joined_fails_the_auth_check(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Another text."""
    answer = await onward(call)
    if answer.status == 403 and "is already in the room" in str(answer.json.get("error")):
        text = "Auth check failed: cannot invite user that is joined or banned"
        return Answer.refusal(403, "M_FORBIDDEN", text)
    return answer


@rule("GET", f"{_V3}/rooms/[^/]+/state/[^/]+(?:/.*)?", 21)
async def hidden_state_is_not_found(call: Call, onward: Onward, memory: Memory) -> Answer:
    """404 instead of 403 for a single event."""
    answer = await onward(call)
    return Answer.refusal(404, "M_NOT_FOUND", "Event not found.") if answer.status == 403 else answer


@rule("POST", f"{_V3}/rooms/[^/]+/leave", 22)
async def leaving_always_succeeds(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Also for who was never there."""
    answer = await onward(call)
    return Answer.of({}) if answer.status in (403, 404) else answer


@rule("GET", f"{_V3}/rooms/[^/]+/joined_members", 31)
async def members_are_told_to_members(call: Call, onward: Onward, memory: Memory) -> Answer:
    """It does not help that another user of the appservice is in the room."""
    answer = await onward(call)
    if answer.fine and call.user_id not in answer.json.get("joined", {}):
        return Answer.refusal(403, "M_FORBIDDEN", "You aren't a member of the room.")
    return answer


@rule("GET", "/_matrix/client/v1/rooms/[^/]+/hierarchy", 33)
async def hierarchies_have_pages_of_ten(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Whatever was asked for."""
    return await onward(call.asking(limit=str(TUWUNEL.hierarchy_page)))


@rule("GET", f"{_V3}/capabilities", 43)
async def the_default_version_is_older(call: Call, onward: Onward, memory: Memory) -> Answer:
    """11, as ``createRoom`` has it."""
    answer = await onward(call)
    content = answer.json
    if answer.fine:
        content["capabilities"]["m.room_versions"]["default"] = TUWUNEL.default_room_version
    return Answer.of(content, answer.status)


@rule("POST", f"{_V3}/createRoom", 37, 38, 43)
async def rooms_come_without_their_invitations(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Invitations follow one by one, and nobody is told of those that fail; empty initial state is dropped."""
    body = {"room_version": TUWUNEL.default_room_version, **call.json}
    if body.get("preset") == "trusted_private_chat":  # gives power to who is invited: not to be taken apart
        return await onward(call.having(body=body))
    invited = body.pop("invite", None) or []
    body["initial_state"] = [entry for entry in body.get("initial_state") or [] if entry.get("content") != {}]
    answer = await onward(call.having(body=body))
    if answer.fine:
        path = f"/_matrix/client/v3/rooms/{answer.json['room_id']}/invite"
        for user_id in invited:
            await onward(call.having(path=path, body={"user_id": user_id}))
    return answer


# ---- sending


@rule("PUT", f"{_V3}/(?:rooms/[^/]+/send|sendToDevice)/[^/]+(?:/[^/]+)?", 23, 24, 25)
async def transaction_ids_are_for_ever(call: Call, onward: Onward, memory: Memory) -> Answer:
    """They count by user and device, without the room; Synapse gets ids of which it knows none."""
    head, _, txn_id = call.path.rpartition("/")
    key = TxnKey(call.user_id, call.device_id, unquote(txn_id))
    messages = "/sendToDevice/" in call.path
    async with memory.txns.lock(key):
        known = memory.txns.find(key)
        if known is not None:
            return Answer.of({} if messages else {"event_id": known})
        inner = hashlib.sha256("\0".join((*key, head)).encode()).hexdigest()
        answer = await onward(call.having(path=f"{head}/{inner}"))
        if answer.fine:
            memory.txns.remember(key, str(answer.json.get("event_id", "")))
        return answer


@rule("PUT", f"{_V3}/rooms/[^/]+/redact/[^/]+/[^/]+", 26)
async def redactions_keep_their_reason_only(call: Call, onward: Onward, memory: Memory) -> Answer:
    """No transaction id, no other keys, no time: a repeated call redacts again."""
    kept = {key: value for key, value in call.json.items() if key == "reason"}
    path = f"{call.path.rpartition('/')[0]}/{secrets.token_hex(8)}"
    return await onward(call.having(path=path, body=kept).asking(ts=None))


@rule("PUT", f"{_V3}/rooms/[^/]+/typing/[^/]+", 32)
async def typing_is_clamped(call: Call, onward: Onward, memory: Memory) -> Answer:
    """To 15 to 45 seconds."""
    body: JSON = call.json
    assert TUWUNEL.typing_ms is not None
    low, high = TUWUNEL.typing_ms
    if body.get("typing"):
        body["timeout"] = min(max(body.get("timeout", high), low), high)
    return await onward(call.having(body=body))


# ---- media


@rule("GET", "/_matrix/media/(?:v3|r0|v1)/(?:config|download|thumbnail)(?:/.*)?", 34)
async def legacy_media_are_refused(call: Call, onward: Onward, memory: Memory) -> Answer:
    """Only the endpoints with authentication are there."""
    return Answer.refusal(403, "M_FORBIDDEN", "Unauthenticated media is disabled.")


@rule("GET", "/_matrix/client/v1/media/config", 36)
async def uploads_are_smaller(call: Call, onward: Onward, memory: Memory) -> Answer:
    """24 MiB."""
    answer = await onward(call)
    return Answer.of({"m.upload.size": TUWUNEL.upload_limit}) if answer.fine else answer


def _as(method: str, call: Call) -> Call:
    return Call(method, call.path, call.query, call.headers, call.body, call.user_id, call.device_id)
