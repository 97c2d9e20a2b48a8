"""The installer: what it takes from pip's settings, what it redoes, what it says when it cannot go on."""

import subprocess
import sys
from pathlib import Path

import pytest

from letta_bridge.testing.stack import install
from letta_bridge.testing.stack.index import translate_pip_config
from letta_bridge.testing.stack.progress import Progress


def test_uv_installs_from_where_pip_would() -> None:
    lines = [
        "global.index-url='https://first.example/simple'",
        "global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'",
        ":env:.index-url='https://second.example/simple'",
        ":env:.find-links='/wheels /more'",
        "install.no-binary=':all:'",
        "freeze.index-url='https://other.example'",
        "not a setting",
    ]
    assert translate_pip_config(lines) == {
        "UV_DEFAULT_INDEX": "https://second.example/simple",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_FIND_LINKS": "/wheels,/more",
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LETTA_BRIDGE_CACHE_DIR", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


def _component(commands: list[list[str]], *inputs: str) -> install.Component:
    return install.Component("thing", "the thing", "thing-venv", inputs, lambda: commands)


def _make(folder: Path, code: str = "") -> list[list[str]]:
    program = f"import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(exist_ok=True)\n{code}"
    return [[sys.executable, "-c", program]]


def test_what_is_complete_is_not_installed_again(cache: Path, monkeypatch, capsys) -> None:
    thing = _component(_make(cache / "thing-venv"), "1.0")
    monkeypatch.setitem(install.COMPONENTS, "thing", thing)
    install.ensure("thing")
    assert "[1/1] installing the thing" in capsys.readouterr().out
    install.ensure("thing")
    assert capsys.readouterr().out == ""

    newer = _component(_make(cache / "thing-venv"), "1.1")
    monkeypatch.setitem(install.COMPONENTS, "thing", newer)
    assert [c.name for c in install.missing("thing")] == ["thing"]


def test_a_failed_installation_is_told_with_its_log_and_redone(cache: Path, monkeypatch) -> None:
    failing = _component(_make(cache / "thing-venv", "raise SystemExit('no such package')"))
    monkeypatch.setitem(install.COMPONENTS, "thing", failing)
    with pytest.raises(install.StackError, match=r"the thing could not be installed(.|\n)*no such package"):
        install.ensure("thing")
    assert install.missing("thing")
    monkeypatch.setitem(install.COMPONENTS, "thing", _component(_make(cache / "thing-venv")))
    install.ensure("thing", progress=Progress(1))
    assert not install.missing("thing")


def test_a_python_that_letta_cannot_run_on_is_named_before_anything_is_installed(cache, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    monkeypatch.setenv("PATH", "/nowhere")
    assert install.main(["synapse", "letta"]) == 1
    told = capsys.readouterr().err
    assert "needs Python 3.11, 3.12 or 3.13" in told
    assert "This is Python 3.15.0" in told
    assert not cache.exists()


def test_the_installer_needs_nothing_but_the_standard_library() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import letta_bridge.testing.stack.install"
    root = str(Path(install.__file__).parents[3])
    subprocess.run([sys.executable, "-S", "-I", "-c", program, root], check=True)
