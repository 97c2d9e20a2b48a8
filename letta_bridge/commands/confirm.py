"""Typed confirmations: what cannot be undone is shown first, and done when its line is typed.

The flow for a command: take :data:`CONFIRM` among the options. Without it, show what would happen and end the reply
with ``how(call, await ask(call, what, phrase), phrase)``; with it, go on only if ``await confirmed(call, given)``.
"""

import hashlib
import json
import secrets

from ..db.confirmations import Confirmation, Confirmations
from ..db.database import Connection
from . import lookup, parse
from .call import Call
from .table import Option

MINUTES = 10
_CONFIRM = parse.ENDLESS
CONFIRM = Option(_CONFIRM, "what the preview says; the last thing on the line")


def _name(call: Call) -> str:
    """Of this person's question about exactly this command."""
    values = {name: value for name, value in lookup.plain(call.args).items() if name != _CONFIRM}
    material = json.dumps([call.who, call.command.name, values], sort_keys=True, default=str)
    return hashlib.sha256(material.encode("utf-8", "replace")).hexdigest()[:40]


async def ask(call: Call, what: str, phrase: str | None = None) -> str:
    """Write down that this person is shown ``what`` would happen now; returns the nonce to be typed within ten minutes.

    Args:
        what: identifies what is shown (ids, counts): whoever confirms can compare it with :func:`confirmed`.
        phrase: what has to be typed after the nonce, such as the agent's name.
    """
    nonce = secrets.token_hex(2)
    store = Confirmations(call.desk.db)

    async def work(conn: Connection) -> None:
        await store.forget_old(conn, MINUTES * 60.0)
        await store.set(conn, _name(call), Confirmation(nonce, phrase or "", what, "", 0.0))

    await call.desk.db.write(work)
    return nonce


async def confirmed(call: Call, given: str | None, what: str | None = None) -> bool:
    """Whether ``given`` (the value of ``--confirm``) is what this person was told to type for exactly this command.

    It counts once; the same call, carried out again after a crash, may use it again.

    Args:
        what: if given, it must still be what was shown.
    """
    store = Confirmations(call.desk.db)
    found = await store.get(_name(call))
    if not given or found is None or not 0 <= found.age < MINUTES * 60:
        return False
    if found.used_by not in ("", call.key) or (what is not None and what != found.what):
        return False
    nonce, _, phrase = given.strip().partition(" ")
    if nonce.casefold() != found.nonce or " ".join(phrase.split()) != " ".join(found.phrase.split()):
        return False
    return await call.desk.db.write(lambda conn: store.use(conn, _name(call), found, call.key))


def how(call: Call, nonce: str, phrase: str | None = None) -> str:
    """The sentence that a preview ends with: the exact line to type."""
    words, values = [call.command.name], lookup.plain(call.args)
    words += [_word(str(values[arg.name])) for arg in call.command.args if values.get(arg.name) is not None]
    for option in call.command.options:
        value = values.get(option.name)
        if option.name != _CONFIRM and value not in (None, False):
            words.append(f"--{option.name}" if option.switch else f"--{option.name} {_word(str(value))}")
    words.append(f"--{_CONFIRM} {nonce}" + (f" {phrase}" if phrase else ""))
    before = "letta-bridge ctl" if call.via == "ctl" else parse.PREFIX
    return f"To do it, type within {MINUTES} minutes:\n\n`{before} {' '.join(words)}`"


REFUSED = (
    "That is not what has to be typed, or it is more than ten minutes old, or something changed since. Nothing was "
    "done. Use the command without `--confirm` to see what it would do now."
)


def _word(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(char.isspace() for char in text) else text
