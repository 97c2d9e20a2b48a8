"""Lets uv install from where pip is configured to install from: uv itself does not read pip's settings."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_TRANSLATION = {
    "index-url": ("UV_DEFAULT_INDEX", None),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", None),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", None),
    "proxy": ("ALL_PROXY", None),
    "timeout": ("UV_HTTP_TIMEOUT", None),
    "default-timeout": ("UV_HTTP_TIMEOUT", None),
}


def uv_environment(cache: Path) -> dict[str, str]:
    """The environment for uv: its cache below ``cache``, the system's certificates, pip's index settings.

    What the environment already says to uv or pip is not overridden.
    """
    with_pip = cache / "uv-venv" / "bin" / "python"  # environments made by uv have no pip to ask
    python = str(with_pip) if with_pip.exists() else sys.executable
    answer = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines()
    defaults = {
        "UV_CACHE_DIR": str(cache / "uv"),
        "PIP_CACHE_DIR": str(cache / "pip"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "1",
        "UV_NO_PROGRESS": "1",
        "UV_HTTP_TIMEOUT": "180",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    inherited = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return defaults | translate_pip_config(lines) | inherited


def translate_pip_config(lines: Iterable[str]) -> dict[str, str]:
    """uv's variables for the lines of ``pip config list`` (``global.index-url='…'``); later lines win."""
    result: dict[str, str] = {}
    for line in lines:
        key, separator, quoted = line.partition("=")
        section, _, option = key.rpartition(".")
        if not separator or section not in ("global", "install", ":env:") or option not in _TRANSLATION:
            continue
        try:
            value = str(ast.literal_eval(quoted))
        except (SyntaxError, ValueError):
            continue
        name, joint = _TRANSLATION[option]
        result[name] = value if joint is None else joint.join(value.split())
    return result
