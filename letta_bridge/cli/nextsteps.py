"""What to do with a fresh registration, for each homeserver and each way, ready to copy."""

import shlex
from pathlib import Path

from .. import registration
from ..config import Config

_LINE = "─" * 78


def text(config: Config, config_path: Path, registration_path: Path, *, show_secrets: bool) -> str:
    """The next steps after ``init`` or ``register``.

    With ``show_secrets`` the messages to paste are complete; without it, where output may be kept by a
    service manager, they name the command that prints them.
    """
    config_file = shlex.quote(str(config_path))
    command = f"letta-bridge register -c {config_file} --show"
    admin_room = registration.admin_room_message(config) if show_secrets else f"  {command} admin-room\n"
    toml = registration.tuwunel_toml(config) if show_secrets else f"  {command} toml\n"
    this_message, this = "this message", "this"
    if not show_secrets:
        this_message = "the message (it holds tokens) that this command prints"
        this = "what this command prints"
    file = shlex.quote(str(registration_path.resolve()))
    return f"""
Next: tell the homeserver about the bridge. One way is enough.

{_LINE}
Tuwunel, while it runs: send in its admin room (#admins:{config.homeserver.domain}) {this_message}:

{admin_room}
{_LINE}
Tuwunel, in its configuration: add to tuwunel.toml {this}, and restart it:

{toml}
{_LINE}
Tuwunel, in a folder: with  appservice_dir = "/etc/tuwunel/appservices"  in tuwunel.toml

  install -m 600 {file} /etc/tuwunel/appservices/{config.appservice.id}.yaml
  (owned by the user that runs Tuwunel; then restart it)

{_LINE}
Synapse: make the file readable for Synapse, name it in homeserver.yaml, and restart it

  install -m 640 -g matrix-synapse {file} /etc/matrix-synapse/{config.appservice.id}.yaml

  app_service_config_files:
    - /etc/matrix-synapse/{config.appservice.id}.yaml

{_LINE}
Then:

  letta-bridge check -c {config_file}
  letta-bridge smoke -c {config_file}
  letta-bridge run -c {config_file}
"""
