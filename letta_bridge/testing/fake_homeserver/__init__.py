"""A homeserver for tests: one process, no database, real HTTP on 127.0.0.1, towards one appservice.

    async with FakeHomeserver(registration, flavour="synapse") as hs:
        hs.appservice_url = "http://127.0.0.1:29384"        # where your appservice listens
        alice = await hs.person("alice")
        room = await alice.create_dm("@letta_example:test.local", text="Hello")
        answer = await alice.wait_message(room, sender="@letta_example:test.local")

``hs.url`` is the base URL for the appservice's client API calls, its tokens are those of ``registration`` (the
parsed YAML; ``example_registration`` without one). ``flavour="tuwunel"`` answers and pushes as Tuwunel 1.9 does;
``Flavour`` lists the differences.

It keeps the rules that a bridge can trip over: power levels and membership of room versions 11 and 12, history
visibility, transaction ids, the 64 KiB limit, exclusive namespaces, profile changes that become member events,
and which events are pushed at all: what is said between a puppet's invite and its join never is.

- Faults: ``hs.fail_next``, ``hs.delay``, ``hs.stop``/``hs.start``, ``hs.restart``, ``hs.hold_push``,
  ``hs.push_raw``, ``hs.push_again``, and ``hs.fail_push`` for what a ``PushFault`` does to one attempt to push.
  ``hs.purge_room`` is what an admin does to a room.
  Set ``backoff_scale=0.01`` to make Synapse's retries quick.
- Looking: ``hs.requests``, ``hs.transactions``, ``hs.wait_pushed``, and every ``Person``.

Not there, and answered 404 M_UNRECOGNIZED: ``/sync``, end-to-end keys and to-device messages, presence, search,
push rules, room upgrades, login, federation. Rate limits exist only as scripted faults.
"""

from .appservice import example_registration
from .client_api import Request
from .errors import MatrixError
from .faults import Fault
from .flavour import SYNAPSE, TUWUNEL, Flavour
from .person import Person
from .push import PushSettings, Transaction
from .push_faults import PushFault
from .server import FakeHomeserver
from .view import Rendered

__all__ = [
    "SYNAPSE",
    "TUWUNEL",
    "FakeHomeserver",
    "Fault",
    "Flavour",
    "MatrixError",
    "Person",
    "PushFault",
    "PushSettings",
    "Rendered",
    "Request",
    "Transaction",
    "example_registration",
]
