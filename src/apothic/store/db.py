"""The database: open, pragmas, migrations, one writer that shares commits, readers beside it.

Statements of writes run on the event loop, some microseconds each: handing each write to a thread cost two switches
between cores, and at every step of SQLite a fight for the interpreter lock, more than the statements themselves. The
commit waits for the disk: a quick one (0.2 ms) is made on the loop too, as the way to a thread and back takes as long;
on a slow disk they are made in a thread. Whatever is there when one ends is the next batch: a commit costs the same
whether it holds one write or a hundred. Nobody is told anything before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from apothic.clock import Clock
from apothic.errors import ConfigError, ServerUnavailableError
from apothic.probe import Probe
from apothic.store.faults import code, is_faulty, named_error, write_again
from apothic.store.schema import fill_lifecycle, migrate
from apothic.store.tx import Tx

T = TypeVar("T")
log = logging.getLogger("apothic.store")

# RETURNING and STRICT came with 3.37, UPDATE … FROM with 3.33.
OLDEST_SQLITE = (3, 37, 0)
# As many rows as one transaction may write before it is committed, though more waits: some 10 ms, in which the loop
# does nothing else.
LARGEST_BATCH = 1_000
BUSY_MS = 10_000
SLOW_S = 0.001  # what a commit may take on the loop, in the mean of the last ones
_WEIGHT = 0.1  # of the newest


class _Write:
    """One waiting write: what to run, and who waits for it."""

    def __init__(self, fn: Callable[[Tx], Any], done: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None
        self.cause: Exception | None = None  # the same, in SQLite's words

    def fail(self, error: Exception) -> None:
        """Note why it was not made; the first reason counts."""
        if self.error is None:
            self.error, self.cause = named_error(error), error

    def tell(self) -> None:
        """Tell who waits what has become of it."""
        if self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self.result)


Deeds = list[Callable[[], None]]


class Database:
    """One SQLite file. `write` shares commits; `read` and `look` see only what is committed."""

    def __init__(self, path: Path, *, clock: Clock, probe: Probe, durable: bool = True) -> None:
        self.path = path
        self._clock = clock
        self._probe = probe
        self._durable = durable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Write] = deque()
        self._at_work = False  # a batch is being written, or about to be
        self._over = asyncio.Event()  # closing, and nothing is left to write
        self._is_open = False
        self._connection: sqlite3.Connection | None = None  # of the writer
        self._faulted = False
        self._is_beside = False  # the writer's connection is in a transaction, or a thread's
        self.commit_s = 0.0  # the mean of the last ones
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="apothic-reader")
        self.last_word: Callable[[Tx], None] | None = None
        self.commits = 0

    def open(self) -> None:
        """Create or migrate the file and start the writer. Raises `ConfigError` when it cannot be used."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigError(
                f"this Python has SQLite {sqlite3.sqlite_version}, too old",
                hint="use a Python whose sqlite3 module has SQLite 3.37 or newer",
            )
        self._connection = self._opened()
        self._loop = asyncio.get_running_loop()
        self._committer = threading.Thread(target=self._run_errands, name="apothic-committer", daemon=True)
        self._committer.start()
        self._is_open = True

    async def close(self) -> None:
        """Finish what waits, then close every connection."""
        if self._is_open:
            self._is_open = False
            if self._at_work:
                await self._over.wait()
            self._errands.put(None)
            await asyncio.to_thread(self._committer.join)
        self._readers.shutdown(wait=True)
        for connection in (*self._reader_connections, self._connection):
            if connection is not None:
                connection.close()
        self._connection = None

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in a transaction; return its result once that is on disk.

        An exception of `fn` undoes what it did and is raised here. A caller that is cancelled while waiting does not
        undo anything: the write is made or not made as a whole.
        """
        if not self._is_open or self._loop is None:
            raise ServerUnavailableError("the store is closed")
        done: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Write(fn, done))
        if not self._at_work:
            self._at_work = True
            self._over.clear()
            self._loop.call_soon(self._turn)  # not at once: what else comes in this round shares the commit
        return await done

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on a read-only connection in a thread, in one snapshot. Raises `StorageFullError` for a bad disk."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)
        except sqlite3.Error as error:
            raise named_error(error) from error

    def look(self, fn: Callable[[Tx], T]) -> T:
        """Do as `read`, here and now: for a few rows, which take less than the way to a thread and back."""
        try:
            if self._is_beside or self._faulted or self._connection is None:
                return self._read(fn)
            # The writer's own, between two of its transactions: what others have read they forget at each commit.
            if not self._connection.in_transaction:
                return self._snapshot(self._connection, fn)
            return self._read(fn)
        except sqlite3.Error as error:
            self._faulted |= is_faulty(error)  # a page that was read short would be believed for ever
            raise named_error(error) from error

    def _opened(self) -> sqlite3.Connection:
        """Return the writer's connection to a file that is ready for use."""
        connection: sqlite3.Connection | None = None
        try:
            write_again(self.path.with_name(self.path.name + "-wal"))
            connection = self._connect(BUSY_MS)
            migrate(connection)
            fill_lifecycle(connection)
            connection.execute("PRAGMA busy_timeout = 0")  # the loop shall not wait
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, sqlite3.Error | OSError):
                raise
            raise ConfigError(
                f"the database {self.path} cannot be opened: {error}",
                hint="check that the data directory is on a local disk and writable, or choose another --data-dir",
            ) from error
        return connection

    def _connect(self, busy_ms: int = 0) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=256)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA busy_timeout = {busy_ms}")
            connection.execute("PRAGMA temp_store = MEMORY")
            # 8 MiB of pages: the hot rows of 10^5 jobs; the default of 2 MiB rereads them.
            connection.execute("PRAGMA cache_size = -8192")
        except BaseException:
            connection.close()
            raise
        return connection

    def _read(self, fn: Callable[[Tx], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect(BUSY_MS)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            self._reader_connections.append(connection)
        return self._snapshot(connection, fn)

    def _snapshot(self, connection: sqlite3.Connection, fn: Callable[[Tx], T]) -> T:
        changes = connection.total_changes
        connection.execute("BEGIN")
        try:
            found = fn(Tx(connection, self._probe))
            # Not by PRAGMA query_only, where the connection is the writer's: that has every statement compiled anew.
            if connection.total_changes != changes:
                raise sqlite3.OperationalError("a readonly transaction has written")
            return found
        finally:
            if connection.in_transaction:  # a fault may have ended it
                connection.execute("ROLLBACK")  # there is nothing to keep

    # --- the writer -----------------------------------------------------------------------------------------------

    def _run_errands(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand()

    def _turn(self) -> None:
        """Write a batch of what waits, and let it be committed."""
        assert self._connection is not None
        if self._faulted:
            self._connection = self._fresh(self._connection)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if code(error) == sqlite3.SQLITE_BUSY:  # a program of somebody else's writes to the file
                self._is_beside = True
                self._errands.put(self._begin_late)
                return
            self._waiting[0].fail(error)
            self._told([self._waiting.popleft()], [])
            return
        self._write_batch()

    def _begin_late(self) -> None:
        assert self._connection is not None and self._loop is not None
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._loop.call_soon_threadsafe(self._begun, None)
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
            self._loop.call_soon_threadsafe(self._begun, error)

    def _begun(self, error: Exception | None) -> None:
        self._is_beside = False
        if error is None:
            self._write_batch()
            return
        batch = list(self._waiting)
        self._waiting.clear()
        self._undo(batch, error)
        self._told(batch, [])

    def _write_batch(self) -> None:
        """Run what waits, as much as a transaction shall hold, then have it committed."""
        assert self._connection is not None
        connection, batch, after = self._connection, list[_Write](), Deeds()
        try:
            rows, queue_changed, fleet_changed = 0, False, False
            while self._waiting and rows < LARGEST_BATCH:
                batch.append(self._waiting.popleft())
                tx = Tx(connection, self._probe)
                self._run_one(connection, batch[-1], tx)
                rows += tx.rows
                if batch[-1].error is None:
                    after += tx.after
                    queue_changed |= tx.queue_changed
                    fleet_changed |= tx.fleet_changed
            if (queue_changed or fleet_changed) and self.last_word is not None:
                tx = self._run_last_word(connection, self.last_word, fleet_changed)
                after += tx.after
        except Exception as error:
            self._undo(batch, error)
            self._told(batch, [])
            return
        if self.commit_s > SLOW_S:
            self._is_beside = True
            self._errands.put(lambda: self._commit_beside(batch, after))
        else:
            self._told(batch, self._commit(batch, after))

    def _commit_beside(self, batch: list[_Write], after: Deeds) -> None:
        assert self._loop is not None
        after = self._commit(batch, after)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told, batch, after)

    def _commit(self, batch: list[_Write], after: Deeds) -> Deeds:
        """Commit, and return what is to be done now."""
        assert self._connection is not None
        begun = self._clock.monotonic()
        try:
            self._probe.reach("commit.before")
            self._connection.execute("COMMIT")
            self._probe.reach("commit.after")
            self.commits += 1
        except Exception as error:
            self._undo(batch, error)
            after = []
        self.commit_s += _WEIGHT * (self._clock.monotonic() - begun - self.commit_s)
        return after

    def _undo(self, batch: list[_Write], error: Exception) -> None:
        assert self._connection is not None
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # it is undone in any case
                self._connection.execute("ROLLBACK")
        for write in batch:
            write.fail(error)

    def _told(self, batch: list[_Write], after: Deeds) -> None:
        """Tell everybody, and go on with what has come meanwhile."""
        self._is_beside = False
        self._faulted = any(is_faulty(write.cause) for write in batch if write.cause is not None)
        for deed in after:  # first: a caller may wait for its result, where an agent waits for an acknowledgement
            _do(deed)
        for write in batch:
            write.tell()
        if self._waiting:
            assert self._loop is not None
            self._loop.call_soon(self._turn)
        else:
            self._at_work = False
            self._over.set()

    def _fresh(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Return a connection that has read nothing through a fault; the old one while there is no other.

        A page that was read short would be believed for ever, as long as a connection has it in memory. The new one is
        there before the old one goes: the last to leave would write the log into the database.
        """
        try:
            fresh = self._connect()
        except sqlite3.Error as error:
            log.warning("store.fault error=%s", error)
            return connection
        connection.close()
        return fresh

    def _run_one(self, connection: sqlite3.Connection, write: _Write, tx: Tx) -> None:
        connection.execute("SAVEPOINT one")
        try:
            write.result = write.fn(tx)
            tx.finish()
        except Exception as error:
            if not connection.in_transaction:  # a full disk undoes the whole transaction by itself
                raise
            connection.execute("ROLLBACK TO one")
            write.fail(error)
        connection.execute("RELEASE one")

    def _run_last_word(
        self, connection: sqlite3.Connection, last_word: Callable[[Tx], None], fleet_changed: bool
    ) -> Tx:
        """Let the dispatcher place what the batch made ready, in the same transaction."""
        tx = Tx(connection, self._probe)
        tx.fleet_changed = fleet_changed
        connection.execute("SAVEPOINT last_word")
        try:
            last_word(tx)
            tx.finish()
        except Exception as error:
            if not connection.in_transaction or is_faulty(error):
                raise
            # What was submitted is kept, and placed by a later round: a slip of the dispatcher must not lose it.
            log.exception("dispatch.failed")
            connection.execute("ROLLBACK TO last_word")
            tx = Tx(connection, self._probe)
        connection.execute("RELEASE last_word")
        return tx


def _do(deed: Callable[[], None]) -> None:
    """Do what others have left for the commit. Whatever it raises is theirs, and the writer goes on."""
    try:
        deed()
    except Exception:
        log.exception("store.deed_failed")
