"""A Synapse of one's own, from its Python package: SQLite, loopback, no federation."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from letta_bridge.testing.stack.install import ensure, python_of
from letta_bridge.testing.stack.loopback import answers, request_json
from letta_bridge.testing.stack.process import ChildProcess, StackError, Tick, child_environment, free_port

_PLENTY = {"per_second": 100_000, "burst_count": 100_000}
_WITHOUT_LIMITS: dict[str, Any] = {
    "rc_message": _PLENTY,
    "rc_registration": _PLENTY,
    "rc_login": {"address": _PLENTY, "account": _PLENTY, "failed_attempts": _PLENTY},
    "rc_admin_redaction": _PLENTY,
    "rc_joins": {"local": _PLENTY, "remote": _PLENTY},
    "rc_joins_per_room": _PLENTY,
    "rc_invites": {"per_room": _PLENTY, "per_user": _PLENTY, "per_issuer": _PLENTY},
    "rc_media_create": _PLENTY,
    "rc_room_creation": _PLENTY,
    "rc_presence": {"per_user": _PLENTY},
    "rc_user_directory": _PLENTY,
    "rc_profile": _PLENTY,
}


class Account(NamedTuple):
    """A user of the local Synapse, with an access token of a device of its own."""

    user_id: str
    password: str
    access_token: str
    device_id: str


class LocalSynapse:
    """``async with LocalSynapse(folder, registrations=[…]) as synapse``: it answers at ``synapse.url``.

    ``folder`` keeps its files; give an empty one. The registrations are read at each start only, so
    ``restart`` after a change. Clients are told not to encrypt direct chats by default. Rate limits are off
    unless ``rate_limits``. ``settings`` are further keys of ``homeserver.yaml``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        domain: str = "test.localhost",
        registrations: Sequence[Path] = (),
        rate_limits: bool = False,
        settings: Mapping[str, Any] | None = None,
        port: int | None = None,
        tick: Tick | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.domain = domain
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.shared_secret = secrets.token_hex(16)
        self._registrations = [str(path.absolute()) for path in registrations]
        self._rate_limits = rate_limits
        self._settings = dict(settings or {})
        self._tick = tick
        self._process: ChildProcess | None = None

    @property
    def log(self) -> Path:
        return self.folder / "synapse.log"

    async def __aenter__(self) -> Self:
        """Start it; raises StackError when it cannot be installed or started."""
        await asyncio.to_thread(ensure, "synapse")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "homeserver.yaml"
        config.write_text(json.dumps(self._config(), indent=1))  # JSON is YAML
        (self.folder / "log.yaml").write_text(json.dumps(self._log_config()))
        keys = self._child("--generate-keys")
        try:
            keys.start()
            if await keys.wait_exit(30):
                raise StackError(f"Synapse refused its configuration\n{keys.log_tail()}")
            await self.start()
        except BaseException:
            keys.kill()
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it again after ``stop``, on the same data and port."""
        self._process = self._child()
        self._process.start()
        await self._process.wait_ready(lambda: answers(f"{self.url}/health"), 90, self._tick)

    async def stop(self) -> None:
        """Stop it; its data stay."""
        if self._process:
            await self._process.stop()

    async def restart(self) -> None:
        """Stop and start it: it reads the registrations again and forgets device-less transaction ids."""
        await self.stop()
        await self.start()

    async def register(self, localpart: str, *, password: str | None = None, admin: bool = False) -> Account:
        """A new user of this domain, by the shared secret. The name must not be in an exclusive namespace."""
        password = password or secrets.token_urlsafe(12)
        url = f"{self.url}/_synapse/admin/v1/register"
        nonce = (await asyncio.to_thread(request_json, url))["nonce"]
        signed = "\0".join((nonce, localpart, password, "admin" if admin else "notadmin"))
        mac = hmac.new(self.shared_secret.encode(), signed.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": localpart, "password": password, "admin": admin, "mac": mac}
        answer = await asyncio.to_thread(request_json, url, body)
        return Account(answer["user_id"], password, answer["access_token"], answer["device_id"])

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log, for a person to read."""
        return self._process.log_tail(lines) if self._process else ""

    def _child(self, *arguments: str) -> ChildProcess:
        command: list[str | Path] = [
            python_of("synapse-venv"),
            "-m",
            "synapse.app.homeserver",
            "-c",
            "homeserver.yaml",
            *arguments,
        ]
        env = child_environment({"HOME": str(self.folder)}, without=("PYTHONPATH", "SYNAPSE_"))
        return ChildProcess("Synapse", command, log=self.log, env=env, cwd=self.folder)

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "server_name": self.domain,
            "public_baseurl": f"{self.url}/",
            "serve_client_wellknown": True,
            "extra_well_known_client_content": {"io.element.e2ee": {"default": False}},
            "report_stats": False,
            "signing_key_path": str(self.folder / "signing.key"),
            "log_config": str(self.folder / "log.yaml"),
            "media_store_path": str(self.folder / "media"),
            "listeners": [
                {
                    "port": self.port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "tls": False,
                    "resources": [{"names": ["client"]}],
                }
            ],
            "database": {"name": "sqlite3", "args": {"database": str(self.folder / "homeserver.db")}},
            "federation_domain_whitelist": [],
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "registration_shared_secret": self.shared_secret,
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "bcrypt_rounds": 4,
            "presence": {"enabled": False},
            "enable_search": False,
            "user_directory": {"enabled": True, "search_all_users": True},
            "redaction_retention_period": None,
            "app_service_config_files": self._registrations,
        }
        return config | ({} if self._rate_limits else _WITHOUT_LIMITS) | self._settings

    @staticmethod
    def _log_config() -> dict[str, Any]:
        line = "%(asctime)s %(levelname)s %(name)s %(lineno)d %(message)s"
        return {
            "version": 1,
            "formatters": {"line": {"format": line}},
            "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {"synapse.storage.SQL": {"level": "WARNING"}},
            "root": {"level": "WARNING", "handlers": ["console"]},
            "disable_existing_loggers": False,
        }
