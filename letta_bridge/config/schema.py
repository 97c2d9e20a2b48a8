"""Every key of the configuration, declared once: its type, default, kind, and the comment people read.

Loading, validation, environment overrides, the example file and the reference page all derive from here.
"""
# ruff: noqa: RUF009  (the calls in dataclass bodies below are dataclasses.field with our metadata)

import dataclasses
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..routing.permissions import Level, Permissions
from . import kinds
from .kinds import EXAMPLE_DOMAIN, PLACEHOLDER, Choice, Kind, ListOf, Number, Switch, Template, Text

REQUIRED = dataclasses.MISSING
_TAG = "letta_bridge"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of one key beside its name and type."""

    kind: Kind
    comment: str
    default: Any
    example: Any
    secret: bool

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED


@dataclass(frozen=True, slots=True)
class Section:
    """A group of keys."""

    cls: type
    comment: str


def _key(kind: Kind, comment: str, default: Any = REQUIRED, *, example: Any = REQUIRED, secret: bool = False) -> Any:
    example = default if example is REQUIRED else example
    metadata = {_TAG: Key(kind, comment, default, example, secret)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata, repr=not secret)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def _section(cls: type, comment: str, *, required: bool = False) -> Any:
    metadata = {_TAG: Section(cls, comment)}
    if required:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default_factory=cls, metadata=metadata)


def members(cls: type) -> list[tuple[str, Key | Section]]:
    """The keys and sections of a section, in their order."""
    return [(f.name, f.metadata[_TAG]) for f in dataclasses.fields(cls) if _TAG in f.metadata]


@dataclass(frozen=True, kw_only=True)
class HomeserverConfig:
    """Where the homeserver is."""

    url: str = _key(
        kinds.HOMESERVER_URL,
        "Where the bridge reaches the homeserver's client API. The shortest way is best: not through a public proxy.",
        example="http://127.0.0.1:8008",
    )
    domain: str = _key(
        kinds.DOMAIN,
        "The homeserver's domain: the part of its users' Matrix ids behind the colon. Cannot be changed later.",
        example=EXAMPLE_DOMAIN,
    )


@dataclass(frozen=True, kw_only=True)
class AppserviceConfig:
    """How the homeserver knows the bridge. What stands here and in the registration file has to be the same."""

    id: str = _key(kinds.NAME, "The name under which the homeserver knows the bridge.", "letta")
    url: str = _key(
        kinds.BRIDGE_URL,
        "Where the homeserver reaches the bridge. In containers use a fixed IP address: "
        "Tuwunel remembers a name it could not look up for days.",
        "http://127.0.0.1:29384",
    )
    host: str = _key(
        kinds.HOST,
        "The address to listen on. Loopback, unless the homeserver is on another machine.",
        "127.0.0.1",
    )
    port: int = _key(Number("a port from 1 to 65535", 1, 65535, whole=True), "The port to listen on.", 29384)
    bot_localpart: str = _key(kinds.LOCALPART, "The bridge's own user, without @ and domain.", "lettabridge")
    bot_displayname: str = _key(kinds.WORD, "The name people see for the bridge's own user.", "Letta Bridge")
    puppet_prefix: str = _key(
        kinds.LOCALPART,
        "How the names of the agents' users and rooms begin: @letta_<id>:domain, #letta_<id>:domain. "
        "Changing it later makes every agent a new user.",
        "letta_",
    )
    as_token: str = _key(
        kinds.TOKEN,
        "The bridge's secret towards the homeserver. Made by 'letta-bridge init' and 'register --new-tokens'.",
        example=f"{PLACEHOLDER}-as-token",
        secret=True,
    )
    hs_token: str = _key(
        kinds.TOKEN,
        "The homeserver's secret towards the bridge. Has to differ from as_token.",
        example=f"{PLACEHOLDER}-hs-token",
        secret=True,
    )
    ephemeral: bool = _key(
        Switch("true or false"), "Whether the homeserver sends typing and read receipts to the bridge.", True
    )
    ping_interval: float = _key(
        kinds.SECONDS,
        "Seconds between two pings through the homeserver. Tuwunel sends again what failed only when "
        "something "
        "happens; the ping is that something. Keep it at 60 or below.",
        45.0,
    )
    body_limit_mib: int = _key(
        Number("a whole number of MiB, 64 or more", 64, 4096, whole=True),
        "The largest transaction that is taken, in MiB. A refused one blocks everything behind it for ever.",
        64,
    )


@dataclass(frozen=True, kw_only=True)
class AgentFilter:
    """Which agents are meant: those that match any of the three lists."""

    tags: tuple[str, ...] = _key(ListOf("a list of tags", item=kinds.WORD), "Agents with any of these tags.", ())
    names: tuple[str, ...] = _key(
        ListOf("a list of name patterns", item=kinds.WORD),
        'Agents whose name matches, such as "support-*".',
        (),
    )
    ids: tuple[str, ...] = _key(ListOf("a list of agent ids", item=kinds.WORD), "Agents with these ids.", ())

    @property
    def empty(self) -> bool:
        """Whether nothing is named."""
        return not (self.tags or self.names or self.ids)

    def matches(self, agent_id: str, name: str, tags: tuple[str, ...]) -> bool:
        """Whether any entry names this agent."""
        return (
            agent_id in self.ids
            or not set(tags).isdisjoint(self.tags)
            or any(fnmatchcase(name, pattern) for pattern in self.names)
        )


@dataclass(frozen=True, kw_only=True)
class LettaConfig:
    """The Letta whose agents are mirrored."""

    url: str = _key(
        kinds.LETTA_URL,
        "Where the bridge reaches Letta's V1 REST API, without /v1.",
        example="http://127.0.0.1:8283",
    )
    api_key: str | None = _key(
        Text("a key, or nothing when Letta has none", kinds.TOKEN.pattern, optional=True),
        "The server's password or API key. Leave it empty when Letta asks for none.",
        None,
        example=PLACEHOLDER,
        secret=True,
    )
    poll_interval: float = _key(kinds.SECONDS, "Seconds between two looks at the list of agents.", 60.0)
    turn_timeout: float = _key(
        kinds.SECONDS,
        "Seconds an agent may work on one answer before the sender is told that it takes too long.",
        600.0,
    )
    request_timeout: float = _key(kinds.SECONDS, "Seconds to wait for any other answer of Letta.", 30.0)
    marker: bool = _key(
        Switch("true or false"),
        "Whether the bridge may create one memory block of its own in Letta, attached to no agent, to recognise the "
        "database by. Of use only where Letta itself does not say which database it has (Letta Cloud).",
        False,
    )
    include: AgentFilter = _section(AgentFilter, "Which agents are mirrored. All lists empty: every agent.")
    exclude: AgentFilter = _section(AgentFilter, "Which agents are left out, even if they are included above.")

    def wants(self, agent_id: str, name: str, tags: tuple[str, ...]) -> bool:
        """Whether this agent is to be mirrored: included (or nothing is named there), and not excluded."""
        included = self.include.empty or self.include.matches(agent_id, name, tags)
        return included and not self.exclude.matches(agent_id, name, tags)


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    """Where messages are kept until they are answered."""

    uri: str = _key(
        kinds.DATABASE_URI,
        "sqlite:<file> (a relative one is taken from this file's folder; one bridge process per file), or "
        "postgresql://user:password@host/database (several replicas may share it).",
        "sqlite:letta_bridge.db",
        secret=True,
    )
    replica_id: str | None = _key(
        Text("a name, or nothing for the host's name", optional=True),
        "The name of this process among its replicas. Each needs its own. Nothing: the host's name.",
        None,
    )
    lease_s: float = _key(kinds.SECONDS, "Seconds without a sign of life after which another replica takes over.", 6.0)
    beat_s: float = _key(kinds.SECONDS, "Seconds between two signs of life. Less than half of lease_s.", 2.0)

    @property
    def replica(self) -> str:
        """The name of this process: ``replica_id`` or the host's name."""
        return self.replica_id or socket.gethostname()


@dataclass(frozen=True, kw_only=True)
class MirrorConfig:
    """How agents look in Matrix."""

    space_name: str = _key(kinds.WORD, "The name of the space that lists every agent's room.", "Letta Agents")
    invite: tuple[str, ...] = _key(
        ListOf("a list of Matrix ids", item=kinds.MATRIX_ID),
        "Who is invited, once, to the space and to every agent's room. Being invited gives no permission.",
        (),
    )
    room_version: str | None = _key(
        Choice('"11", "12", or nothing for the homeserver\'s default', ("11", "12"), True),
        "The Matrix room version of new rooms. Nothing: the homeserver's default.",
        None,
    )
    concurrency: int = _key(
        Number("a whole number from 1 to 100", 1, 100, whole=True),
        "How many agents are set up at the same time.",
        10,
    )
    avatar_hosts: tuple[str, ...] = _key(
        ListOf("a list of host names", item=kinds.HOST),
        "Hosts from which an avatar named by an agent's metadata may be fetched. mxc:// addresses need none.",
        (),
    )
    avatar_max_kib: int = _key(
        Number("a whole number of KiB from 1 to 20480", 1, 20480, whole=True),
        "The largest avatar, in KiB.",
        1024,
    )
    avatar_timeout: float = _key(kinds.SECONDS, "Seconds to wait for an avatar.", 10.0)
    grace_h: float = _key(
        Number("a number of hours, 0 or more"),
        "Hours that an agent may be missing in Letta before its room is archived.",
        24.0,
    )
    check_h: float = _key(
        Number("a number of hours, 0 or more"),
        "Hours between two looks at every room's state, for damage that nobody told the bridge of. 0: never.",
        24.0,
    )
    history: int = _key(
        Number("a whole number from 0 to 500", 0, 500, whole=True),
        "How many of an agent's last lines are shown in its room when the room is made.",
        20,
    )


@dataclass(frozen=True, kw_only=True)
class ManagementConfig:
    """Where admins command the bridge."""

    rooms: bool = _key(
        Switch("true or false"),
        "Whether the bridge makes a management room for every admin who is named by a full Matrix id under "
        "permissions, and invites them.",
        True,
    )
    socket: str = _key(
        kinds.WORD,
        "The file through which 'letta-bridge ctl' reaches the running bridge. A relative one is taken from this "
        "file's folder. Only the user that runs the bridge can use it.",
        "letta-bridge.sock",
    )


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """The bridge's own HTTP interface, for webhooks and scripts."""

    token: str | None = _key(
        Text("a secret word, or nothing to have no such interface", kinds.TOKEN.pattern, optional=True),
        "The secret that callers send as 'Authorization: Bearer …'. Nothing: the interface is not served.",
        None,
        secret=True,
    )
    host: str = _key(kinds.HOST, "The address to serve it on.", "127.0.0.1")
    port: int = _key(Number("a port from 1 to 65535", 1, 65535, whole=True), "The port to serve it on.", 29386)


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What keeps one person, one message or one answer from taking everything."""

    messages_per_minute: int = _key(
        Number("a whole number of 1 or more", 1, whole=True),
        "How many messages to agents one person may send per minute; commands of who is no administrator count too. "
        "Who sends more is told so.",
        20,
    )
    turn_attempts: int = _key(
        Number("a whole number from 1 to 100", 1, 100, whole=True),
        "How often a message is tried after unclear errors before it is given up and its sender told.",
        5,
    )
    catchup_events: int = _key(
        Number("a whole number of 1 or more", 1, whole=True),
        "How many events of a room are read back at most when an agent joins it or after a gap.",
        1000,
    )
    reply_part_kib: int = _key(
        Number("a whole number of KiB from 1 to 24", 1, 24, whole=True),
        "The largest part, in KiB, into which a long answer is split. A Matrix event holds 64 KiB in all, and holds "
        "the text more than once.",
        16,
    )


@dataclass(frozen=True, kw_only=True)
class ConversationConfig:
    """How answers appear."""

    stream: bool = _key(
        Switch("true or false"),
        "Whether an answer is shown while it is written, by edits of one message.",
        True,
    )
    first_event_s: float = _key(
        kinds.SECONDS_OR_ZERO,
        "Seconds after which a streamed answer first appears (or at its first word, if that is later).",
        1.0,
    )
    max_edits: int = _key(
        Number("a whole number, 0 or more", 0, 1000, whole=True),
        "How often one answer is edited at most while it is written. The complete answer always follows.",
        50,
    )


@dataclass(frozen=True, kw_only=True)
class ShutdownConfig:
    """How the bridge ends."""

    drain_s: float = _key(
        kinds.SECONDS_OR_ZERO,
        "Seconds that running answers get to end when the bridge is stopped. What is left goes on after the restart.",
        10.0,
    )


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus finds the bridge's metrics."""

    enabled: bool = _key(Switch("true or false"), "Whether metrics are counted and served.", False)
    host: str = _key(
        kinds.HOST,
        "The address to serve them on. They hold no names and no texts, and nobody is asked who reads them.",
        "127.0.0.1",
    )
    port: int = _key(
        Number("a port from 1 to 65535", 1, 65535, whole=True), "The port to serve them on, under /metrics.", 29385
    )


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What the bridge writes to its standard error."""

    level: str = _key(
        Choice("DEBUG, INFO, WARNING or ERROR", ("DEBUG", "INFO", "WARNING", "ERROR")),
        "DEBUG, INFO, WARNING or ERROR. Secrets are never written, message texts only by DEBUG, where Letta, its "
        "model's provider or the homeserver quotes one in an error.",
        "INFO",
    )
    format: str = _key(Choice("text or json", ("text", "json")), "text for people, json for machines.", "text")


IGNORED_SENDERS = (
    "@*bot:*",
    "@_*:*",
    "@bluesky_*:*",
    "@discord_*:*",
    "@facebook_*:*",
    "@gmessages_*:*",
    "@googlechat_*:*",
    "@instagram_*:*",
    "@irc_*:*",
    "@linkedin_*:*",
    "@meta_*:*",
    "@signal_*:*",
    "@slack_*:*",
    "@steam_*:*",
    "@telegram_*:*",
    "@twitter_*:*",
    "@whatsapp_*:*",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration, validated.

    ``base`` is the folder that relative paths start from; ``warnings`` are sentences about what is allowed
    and yet probably not meant.
    """

    homeserver: HomeserverConfig = _section(HomeserverConfig, "The Matrix homeserver.", required=True)
    appservice: AppserviceConfig = _section(
        AppserviceConfig,
        "How the homeserver knows the bridge. After a change here run 'letta-bridge register --force' and "
        "register the new file with the homeserver.",
        required=True,
    )
    letta: LettaConfig = _section(LettaConfig, "The Letta whose agents become Matrix users.", required=True)
    database: DatabaseConfig = _section(DatabaseConfig, "Where messages are kept until they are answered.")
    mirror: MirrorConfig = _section(MirrorConfig, "How the agents look in Matrix.")
    permissions: Mapping[str, Level] = _key(
        kinds.PermissionTable('a list of "who: level"'),
        "Who may talk to agents (user), administer the bridge too (admin), or nothing (none). Who is "
        '"*" (everybody), a domain, or a full Matrix id, always in quotes; the most specific one wins. '
        "Who is not named may do nothing.",
        {},
        example={f"@admin:{EXAMPLE_DOMAIN}": Level.ADMIN, EXAMPLE_DOMAIN: Level.USER},
    )
    ignored_senders: tuple[str, ...] = _key(
        ListOf("a list of patterns", item=kinds.SENDER_GLOB),
        'Other bridges\' users and bots: these are never let in by "*" or a domain, '
        "only by an entry with their full Matrix id.",
        IGNORED_SENDERS,
    )
    limits: LimitsConfig = _section(LimitsConfig, "What one person, one message and one answer may take.")
    conversation: ConversationConfig = _section(ConversationConfig, "How answers appear.")
    shutdown: ShutdownConfig = _section(ShutdownConfig, "How the bridge ends.")
    metrics: MetricsConfig = _section(MetricsConfig, "Metrics for Prometheus: docs/monitoring.md.")
    management: ManagementConfig = _section(ManagementConfig, "Where admins command the bridge: docs/commands.md.")
    control: ControlConfig = _section(
        ControlConfig, "The bridge's own HTTP interface, for webhooks and scripts: docs/lifecycle.md."
    )
    templates: Mapping[str, Template] = _key(
        kinds.TemplateTable("a list of templates by name"),
        "Presets for new agents, for '!letta summon <name> --template <template>'. Each may have persona, human, "
        "description, model, tags (a list) and traits (names with numbers from 0 to 1).",
        {},
        example={"scout": Template(persona="I look things up and say where I found them.", tags=("scout",))},
    )
    logging: LoggingConfig = _section(LoggingConfig, "What the bridge writes to its standard error.")
    path: Path | None = None
    base: Path = Path()
    warnings: tuple[str, ...] = ()

    @property
    def bot_mxid(self) -> str:
        """The full Matrix id of the bridge's own user."""
        return f"@{self.appservice.bot_localpart}:{self.homeserver.domain}"

    def permission_table(self) -> Permissions:
        """Who may do what."""
        return Permissions(self.permissions, self.ignored_senders)

    def secrets(self) -> frozenset[str]:
        """Every secret text in this configuration, for logs to leave out."""
        password = urlsplit(self.database.uri).password if "://" in self.database.uri else None
        found = {self.appservice.as_token, self.appservice.hs_token, self.letta.api_key, self.control.token, password}
        found.add(unquote(password) if password else None)
        return frozenset(text for text in found if text)


Leaf = tuple[tuple[str, ...], Key]


def leaves(cls: type = Config, above: tuple[str, ...] = ()) -> list[Leaf]:
    """Every key with its path, in the order of the file."""
    found: list[Leaf] = []
    for name, member in members(cls):
        path = (*above, name)
        if isinstance(member, Section):
            found += leaves(member.cls, path)
        else:
            found.append((path, member))
    return found
