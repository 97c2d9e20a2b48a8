"""What differs between the two homeservers, one field per difference.

Synapse's column was observed on 1.163.2, Tuwunel's was read in the source of 1.9.0.
"""

from dataclasses import dataclass
from typing import Literal

FlavourName = Literal["synapse", "tuwunel"]


@dataclass(frozen=True, slots=True)
class Flavour:
    """The switches of one homeserver. Words in quotes in the comments are API terms."""

    name: FlavourName
    default_room_version: str
    # masquerading and devices
    checks_registration: bool  # acting as an unregistered namespace user is refused
    foreign_user: tuple[int, str]  # ``user_id`` outside the namespace
    unknown_device: tuple[int, str]  # ``device_id`` that does not exist
    namespace_profiles: bool  # the appservice may set the profile of any namespace user as its sender
    profile_lag: float  # seconds until the member events of a changed profile are written; 0: before the answer
    new_name_suffix: str  # display name of a new ghost = localpart + this
    # transactions of clients
    txn_per_user: bool  # key (user, device, id) for ever; else (path, appservice) in memory and per device on disk
    redact_keeps: bool  # the redact endpoint honours transaction id, extra keys and ``ts``
    # rooms
    hidden_state: tuple[int, str]  # reading one state event without access
    strangers_leave: bool  # leaving a room one was never in is a success
    joins_empty: bool  # a room without any member lets those in who were invited, or anybody if it is public
    strict_create: bool  # a failing invite fails createRoom; ``{}`` in initial_state is kept
    typing_ms: tuple[int, int] | None  # clamp of the typing timeout
    hierarchy_page: int
    hierarchy_ordered: bool  # children sorted by ``order``
    relations_page: int
    bundles_edits: bool
    members_for_any: bool  # joined_members when any namespace user is joined
    # media
    upload_limit: int  # bytes
    legacy_media: bool
    # towards the appservice
    queries_users: bool  # GET /users/{id} before an event that names an unknown ghost
    v1_events: bool  # age, user_id, prev_content … at the top level of events


SYNAPSE = Flavour(
    name="synapse",
    default_room_version="12",
    checks_registration=True,
    foreign_user=(403, "M_FORBIDDEN"),
    unknown_device=(400, "M_UNKNOWN_DEVICE"),
    namespace_profiles=False,
    profile_lag=0.02,
    new_name_suffix="",
    txn_per_user=False,
    redact_keeps=True,
    hidden_state=(403, "M_FORBIDDEN"),
    strangers_leave=False,
    joins_empty=False,
    strict_create=True,
    typing_ms=None,
    hierarchy_page=50,
    hierarchy_ordered=True,
    relations_page=5,
    bundles_edits=True,
    members_for_any=True,
    upload_limit=52_428_800,
    legacy_media=True,
    queries_users=True,
    v1_events=True,
)

TUWUNEL = Flavour(
    name="tuwunel",
    default_room_version="11",
    checks_registration=False,
    foreign_user=(400, "M_EXCLUSIVE"),
    unknown_device=(400, "M_INVALID_PARAM"),
    namespace_profiles=True,
    profile_lag=0,
    new_name_suffix=" 💕",
    txn_per_user=True,
    redact_keeps=False,
    hidden_state=(404, "M_NOT_FOUND"),
    strangers_leave=True,
    joins_empty=True,
    strict_create=False,
    typing_ms=(15_000, 45_000),
    hierarchy_page=10,
    hierarchy_ordered=False,
    relations_page=30,
    bundles_edits=False,
    members_for_any=False,
    upload_limit=25_165_824,
    legacy_media=False,
    queries_users=False,
    v1_events=False,
)

FLAVOURS: dict[str, Flavour] = {"synapse": SYNAPSE, "tuwunel": TUWUNEL}
