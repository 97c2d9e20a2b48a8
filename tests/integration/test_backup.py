"""A backup is one moment of a running bridge, in a file that both databases can be made from again."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.db.backup import backup
from letta_bridge.db.catalog import MAKE, NEWEST
from letta_bridge.db.database import Database, DatabaseInUseError
from letta_bridge.db.dump import BackupError
from letta_bridge.db.restore import inspect, restore

from .backup_kit import ABOUT, as_restored, contents, fill, made, opened, target


@pytest_asyncio.fixture
async def db(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    one = await opened(database_uri, tmp_path)
    yield one
    await one.close()


async def rooms(db: Database) -> list[str]:
    return [str(row["name"]) for row in await db.fetch("SELECT name FROM room")]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def into_uri(request: pytest.FixtureRequest, database_uri: str) -> str:
    """Where the backup goes: the other SQLite file, or the test's database of PostgreSQL."""
    return "sqlite:two.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


async def test_what_was_backed_up_under_traffic_comes_back_on_either_database(
    tmp_path: Path, database_uri: str, into_uri: str
) -> None:
    one = await opened(database_uri, tmp_path)
    await fill(one, 0, 1200)
    going = True

    async def traffic() -> int:
        number = 100_000
        while going:
            await fill(one, number, 3)
            number += 3
        return number

    writing = asyncio.create_task(traffic())
    report = await backup(one, tmp_path / "bridge.backup", ABOUT)
    going = False
    await writing
    assert stat.S_IMODE((tmp_path / "bridge.backup").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.glob("*backup*")) == ["bridge.backup"], "something was left behind"
    # one moment: every piece of work is in it whole or not at all
    assert report.rows["inbox"] == report.rows["turn"] == report.rows["turn_event"] == report.rows["outbox"]
    assert report.rows["inbox"] % 3 == 0
    await one.close()

    where = target(into_uri, tmp_path)
    again = await restore(where, tmp_path / "bridge.backup", replace=into_uri == database_uri)
    assert again.rows == report.rows
    two = await opened(where.uri, tmp_path)
    first = await as_restored(two)
    assert len(first["inbox"]) == report.rows["inbox"]
    assert await rooms(two) == ["Räume ☃"] * 7
    # there and back gives the same
    await made(two, tmp_path / "second.backup")
    back = target("sqlite:three.db", tmp_path)
    await two.close()
    await restore(back, tmp_path / "second.backup")
    three = await opened(back.uri, tmp_path)
    assert await as_restored(three) == first
    await three.close()


async def test_numbers_go_on_after_a_restore(db: Database, tmp_path: Path, database_uri: str) -> None:
    await fill(db, 0, 5)
    await db.write(lambda conn: conn.execute("DELETE FROM outbox WHERE seq > 2"))
    await made(db, tmp_path / "b")
    await db.close()
    await restore(target(database_uri, tmp_path), tmp_path / "b", replace=True)
    again = await opened(database_uri, tmp_path)
    await fill(again, 10, 1)
    assert await again.fetchval("SELECT MAX(seq) FROM inbox") == 6
    assert await again.fetchval("SELECT MAX(seq) FROM outbox") == 6, "a number was given twice"
    await again.close()


async def test_a_backup_keeps_no_writer_waiting_and_no_loop_busy(db: Database, tmp_path: Path) -> None:
    await fill(db, 0, 4000)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(backup(db, tmp_path / "b", ABOUT))
    longest = written = 0.0
    while not task.done():
        before = loop.time()
        await db.write(lambda conn: conn.execute("UPDATE room SET name = 'x'"))
        longest = max(longest, loop.time() - before)
        written += 1
    await task
    assert written > 5
    assert longest < 2.0


async def test_a_file_that_exists_is_kept_unless_told(db: Database, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_text("precious")
    with pytest.raises(BackupError, match="exists already"):
        await backup(db, path, ABOUT)
    assert path.read_text() == "precious"
    path.write_bytes(b"")
    for _ in range(2):  # in the place of nothing, and of a backup
        await backup(db, path, ABOUT, overwrite=True)
    header, _ = await inspect(path)
    assert header.schema == NEWEST
    with pytest.raises(BackupError, match="cannot be written"):
        await backup(db, tmp_path / "nowhere" / "b", ABOUT)


async def test_nothing_but_a_backup_is_ever_replaced(tmp_path: Path) -> None:
    """The database itself, the configuration, a folder, a pipe: names are mistyped."""
    db = await opened("sqlite:bridge.db", tmp_path)
    await fill(db, 0, 10)
    config, pipe, folder = tmp_path / "config.yaml", tmp_path / "pipe", tmp_path / "folder"
    config.write_text("precious: 1")
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (tmp_path / "bridge.db", config, pipe, folder):
        with pytest.raises(BackupError, match="no backup"):
            await asyncio.wait_for(backup(db, path, ABOUT, overwrite=True), 10)
    assert config.read_text() == "precious: 1"
    assert (tmp_path / "bridge.db").read_bytes().startswith(b"SQLite format 3")
    assert not list(tmp_path.glob(".*.part"))
    await db.close()


@pytest.mark.parametrize("name", ["/", "/tmp/a\0b", "/tmp/" + "x" * 300])
async def test_what_is_no_name_for_a_file_is_said(db: Database, name: str) -> None:
    with pytest.raises(BackupError, match="file"):
        await backup(db, Path(name), ABOUT)


async def test_a_backup_that_is_cancelled_leaves_nothing(db: Database, tmp_path: Path) -> None:
    """Also not an open file, when that is being made at this very moment."""
    await fill(db, 0, 3000)
    for _ in range(20):
        task = asyncio.create_task(backup(db, tmp_path / "b", ABOUT))
        while not list(tmp_path.glob(".b.*.part")) and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not list(tmp_path.glob(".b.*")) and not (tmp_path / "b").exists()
    gc.collect()  # a file that nobody closed is told now


FULL = """
import asyncio, resource, sys
from pathlib import Path
from letta_bridge.db.backup import backup
from letta_bridge.db.database import Database
from letta_bridge.db.dump import BackupError

async def main():
    db = Database("sqlite:bridge.db", Path(sys.argv[1]))
    await db.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        await backup(db, Path(sys.argv[1]) / "b", {})
    except BackupError as error:
        print(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        import os; sys.stdout.flush(); os._exit(0)

asyncio.run(main())
"""


async def test_no_room_on_the_disk_is_said_and_leaves_no_half_file(tmp_path: Path) -> None:
    db = await opened("sqlite:bridge.db", tmp_path)
    await fill(db, 0, 5000)
    await db.close()
    answer = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=50
    )
    assert "not enough room" in answer.stdout, answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if "b." not in path.name[:3] and "part" in path.name) == []
    assert not (tmp_path / "b").exists()


# -- what is not restored


def rewrite(path: Path, change: object) -> None:
    """Change the lines of a backup."""
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    changed = change(lines)  # type: ignore[operator]
    path.write_bytes(gzip.compress(b"\n".join(changed)))


def other_header(**changes: object) -> object:
    def change(lines: list[bytes]) -> list[bytes]:
        import hashlib

        lines[0] = json.dumps(json.loads(lines[0]) | changes).encode()
        footer = json.loads(lines[-2])
        footer["end"]["sha256"] = hashlib.sha256(b"\n".join(lines[:-2]) + b"\n").hexdigest()
        lines[-2] = json.dumps(footer).encode()
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [line.replace(b"hello", b"hellu") for line in lines], "SHA-256"),
        (lambda lines: [*lines[:-2], b""], "end is missing"),
        (lambda lines: [*lines[:-1], b"[1]", b""], "follows its end"),
        (lambda lines: lines[: len(lines) // 2], "damaged"),
        (lambda lines: [b"{}", *lines[1:]], "no backup"),
        (other_header(schema=NEWEST + 1, about={**ABOUT, "version": "9.9"}), r"newer version of letta-bridge \(9\.9\)"),
        (other_header(letta_bridge_backup=2), "newer version"),
        (other_header(about={**ABOUT, "domain": "other.org"}), "another bridge"),
        (other_header(about={**ABOUT, "appservice": "else"}), "another bridge"),
    ],
)
async def test_a_file_that_cannot_be_trusted_changes_nothing(
    db: Database, tmp_path: Path, database_uri: str, change: object, says: str
) -> None:
    await fill(db, 0, 20)
    await made(db, tmp_path / "b")
    await fill(db, 50, 3)
    before = await contents(db)
    await db.close()
    rewrite(tmp_path / "b", change)
    with pytest.raises(BackupError, match=says):
        await restore(target(database_uri, tmp_path), tmp_path / "b", replace=True)
    again = await opened(database_uri, tmp_path)
    assert await contents(again) == before
    await again.close()


@pytest.mark.parametrize("cut", [5, 0.5, -1])
async def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: float) -> None:
    db = await opened("sqlite:bridge.db", tmp_path)
    await fill(db, 0, 50)
    await made(db, tmp_path / "b")
    await db.close()
    data = (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(data[: int(len(data) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(BackupError, match=r"damaged|no backup"):
        await restore(target("sqlite:bridge.db", tmp_path), tmp_path / "b", replace=True)


async def test_what_is_there_is_replaced_only_when_told(db: Database, tmp_path: Path, database_uri: str) -> None:
    await fill(db, 0, 3)
    await made(db, tmp_path / "b")
    await db.close()
    with pytest.raises(BackupError, match="not empty"):
        await restore(target(database_uri, tmp_path), tmp_path / "b")
    report = await restore(target(database_uri, tmp_path), tmp_path / "b", replace=True)
    assert report.rooms == 3


async def test_a_running_bridge_is_not_restored_under(tmp_path: Path) -> None:
    db = await opened("sqlite:bridge.db", tmp_path)
    await made(db, tmp_path / "b")
    with pytest.raises(DatabaseInUseError, match="in use"):
        await restore(target("sqlite:bridge.db", tmp_path), tmp_path / "b", replace=True)
    await db.close()


@pytest.mark.postgres
async def test_a_beating_replica_is_not_restored_under(tmp_path: Path, postgres_url: str) -> None:
    db = await opened(postgres_url, tmp_path)
    await made(db, tmp_path / "b")
    await db.write(
        lambda conn: conn.execute(f"INSERT INTO replica (id, incarnation, beat) VALUES ('one', 'x', {db.now})")
    )
    with pytest.raises(DatabaseInUseError, match=r"replica one"):
        await restore(target(postgres_url, tmp_path), tmp_path / "b", replace=True)
    await db.write(lambda conn: conn.execute("UPDATE replica SET beat = beat - 60"))
    await restore(target(postgres_url, tmp_path), tmp_path / "b", replace=True)
    assert await db.fetch("SELECT * FROM replica") == []
    await db.close()


@pytest.mark.postgres
async def test_tables_of_others_are_left_alone(tmp_path: Path, postgres_url: str) -> None:
    source = await opened("sqlite:bridge.db", tmp_path)
    await made(source, tmp_path / "b")
    await source.close()
    import asyncpg

    conn = await asyncpg.connect(postgres_url)
    await conn.execute("CREATE TABLE member (name TEXT)")
    with pytest.raises(BackupError, match="not letta-bridge's"):
        await restore(target(postgres_url, tmp_path), tmp_path / "b", replace=True)
    await conn.execute("ALTER TABLE member RENAME TO somebody_elses")
    await restore(target(postgres_url, tmp_path), tmp_path / "b")
    assert await conn.fetch("SELECT * FROM somebody_elses") == []
    await conn.close()


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from letta_bridge.db.restore import Target, restore

def progress(table, rows):
    if table == "turn_event":
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(restore(Target(sys.argv[1], Path(sys.argv[2]), 6.0, {}), Path(sys.argv[2]) / "b", replace=True,
                    progress=progress))
"""


async def test_killed_in_the_middle_of_a_restore_it_holds_what_it_held(
    db: Database, tmp_path: Path, database_uri: str
) -> None:
    await fill(db, 0, 1500)
    await made(db, tmp_path / "b")
    await fill(db, 9000, 20)
    before = await contents(db)
    await db.close()
    answer = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, database_uri, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert answer.returncode == -9, answer.stderr
    again = await opened(database_uri, tmp_path)
    assert await contents(again) == before
    await again.close()


async def test_every_schema_can_be_made(tmp_path: Path) -> None:
    assert set(MAKE) == set(range(1, NEWEST + 1)), "a backup of some version could not be restored"
