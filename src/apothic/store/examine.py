"""Look a data directory over from outside: is it whole, private, and with room? For `apothic doctor` and for tests.

It only reads, in one snapshot, so it may run beside a server, or after one that was killed.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from apothic.protocol.findings import Finding, State
from apothic.store.blobs import missing_files
from apothic.store.db import OLDEST_SQLITE
from apothic.store.queries import invariants, migrations
from apothic.store.schema import audit

# Below this SQLite itself may not get through a checkpoint; the server answers 507 soon after.
LEAST_FREE = 256 * 1024 * 1024
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre")


def examine(data_dir: Path) -> Iterator[Finding]:
    """Yield what there is to say of a data directory. Raises nothing: what cannot be looked at is a finding."""
    yield _library()
    if not data_dir.is_dir():
        yield Finding("data directory", State.NOTE, f"{data_dir} is not there yet; the first server makes it")
        return
    yield from _folder(data_dir)
    path = data_dir / "apothic.db"
    if not path.exists():
        yield Finding("store", State.NOTE, "no server has written anything here yet")
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")  # all that follows is about one instant, also while a server writes
            yield from _database(connection)
            yield _files(connection, data_dir / "blobs")
    except sqlite3.Error as error:
        yield Finding(
            "store", State.WRONG, f"{path} cannot be read: {error}",
            "stop the server, keep a copy of the directory, and look at its disk",
        )  # fmt: skip


def _library() -> Finding:
    have, least = sqlite3.sqlite_version, ".".join(map(str, OLDEST_SQLITE))
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        return Finding("sqlite", State.WRONG, f"SQLite {have} is too old", f"use a Python with SQLite {least} or newer")
    return Finding("sqlite", State.OK, f"SQLite {have}")


def _folder(data_dir: Path) -> Iterator[Finding]:
    mode = data_dir.stat().st_mode & 0o777
    keys = [data_dir / name for name in ("admin.key", "agent.key")]
    open_to_others = [path.name for path in keys if path.exists() and path.stat().st_mode & 0o077]
    if mode & 0o077 or open_to_others:
        what = " and ".join(open_to_others) or "it"
        yield Finding(
            "data directory", State.WRONG, f"others may read {what} in {data_dir} (mode {mode:03o})",
            f"chmod 700 {data_dir}; chmod 600 {data_dir}/*.key",
        )  # fmt: skip
    else:
        yield Finding("data directory", State.OK, f"{data_dir}, private")
    kind = filesystem(data_dir, Path("/proc/self/mounts"))
    if kind in _REMOTE:
        yield Finding(
            "file system", State.WRONG, f"{data_dir} is on {kind}, where SQLite's locks do not hold",
            "choose a directory on a local disk with --data-dir",
        )  # fmt: skip
    free = shutil.disk_usage(data_dir).free
    said = f"{free / (1 << 30):,.1f} GiB free" + (f" ({kind})" if kind else "")
    if free < LEAST_FREE:
        yield Finding("disk", State.WRONG, said, "free some space, or set disk_ceiling and a shorter retention_days")
    else:
        yield Finding("disk", State.OK, said)


def filesystem(path: Path, mounts: Path) -> str | None:
    """Return the kind of file system that a path is on, by the longest mount point that leads to it."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return None
    whole = path.resolve()
    leading = [(len(words[1]), words[2]) for words in lines if len(words) > 2 and whole.is_relative_to(words[1])]
    return max(leading)[1] if leading else None


def _files(connection: sqlite3.Connection, root: Path) -> Finding:
    try:
        astray = missing_files(connection, root)
    except sqlite3.Error as error:  # of another schema, or damaged: that is told elsewhere
        return Finding("blobs", State.NOTE, f"not looked at: {error}")
    if astray.rows:
        return Finding(
            "blobs", State.WRONG, f"{len(astray.rows):,} files are missing or cut short: {', '.join(astray.rows[:3])}",
            "jobs that need them will fail; look at the disk, or bring the files back from a copy",
        )  # fmt: skip
    if astray.files:
        return Finding("blobs", State.NOTE, f"{len(astray.files):,} files that no row names; the server removes them")
    return Finding("blobs", State.OK, "every blob has its file")


def _database(connection: sqlite3.Connection) -> Iterator[Finding]:
    have, newest = int(connection.execute("PRAGMA user_version").fetchone()[0]), migrations()[-1][0]
    if have != newest:
        said = f"its schema is {have}, this version's is {newest}"
        newer = have > newest
        hint = "upgrade apothic-runtime" if newer else "start a server once: it brings the schema up to date"
        yield Finding("schema", State.WRONG if newer else State.NOTE, said, hint)
        return
    pages = [str(row[0]) for row in connection.execute("PRAGMA quick_check(10)")]
    if pages != ["ok"]:
        yield Finding(
            "store", State.WRONG, f"the database is damaged: {pages[0]}",
            "keep a copy of the directory; `sqlite3 apothic.db .recover` saves what can be read",
        )  # fmt: skip
        return
    count = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
    yield Finding("store", State.OK, f"{count:,} jobs, schema {have}, every page sound")
    broken = audit(connection)
    for rule, ids in broken.items():
        yield Finding(
            f"rule {rule}", State.WRONG, f"broken by {', '.join(ids)}",
            "this is a bug of apothic: report it, with this output and `apothic job story` of the job",
        )  # fmt: skip
    if not broken:
        yield Finding("rules", State.OK, f"all {len(invariants())} rules of the auditor hold")
