"""How an ended job is turned into a value or an exception, where the caller is."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apothic.client.loop import CALLER, at_caller
from apothic.errors import JobFailedError
from apothic.protocol import failures, values
from apothic.protocol.messages import JobResult, Value

if TYPE_CHECKING:
    from apothic.client.job import Job


@dataclass(frozen=True)
class Outcome:
    """A job that has ended, and what the server says of it."""

    job: Job
    result: JobResult

    @property
    def is_plain(self) -> bool:
        """Tell whether the value is here already, as Python objects."""
        value = self.result.value
        return value is not None and value.encoding == "json" and value.sha256 is None

    async def value(self) -> Any:
        """Return the value, or raise what the job failed with. Pickles are read in the caller's thread."""
        if self.is_plain and self.result.value is not None:
            return self.result.value.data
        if self.result.value is None:
            raise await at_caller(self.error)
        if self.result.value.sha256 is not None:
            return await self._fetched(self.result.value)
        return await at_caller(self.read)

    async def settled(self) -> Any:
        """Return the value, or the exception that the job failed with."""
        try:
            return await self.value()
        except Exception as error:
            return error

    def read(self) -> Any:
        """Unpack a value that came with the answer."""
        assert self.result.value is not None
        return values.unpack_wire(self.result.value, what=f"the result of {self._what}")

    def error(self) -> Exception:
        """Make the exception that the job failed with."""
        failure = self.result.job.failure
        if failure is None:
            status = self.result.job.status.value
            return JobFailedError(f"{self.job.job_id} ended {status}, and nothing tells why", job=self.job)
        return failures.rebuild(failure, self.job)

    @property
    def _what(self) -> str:
        return f"{self.result.job.function} ({self.job.job_id})"

    async def _fetched(self, value: Value) -> Any:
        with tempfile.TemporaryDirectory(prefix="apothic-") as folder:
            file = Path(folder) / "value"
            assert value.sha256 is not None
            await self.job._client.fetch(value.sha256, file)
            return await unpacked(value, file, f"the result of {self._what}")


async def unpacked(value: Value, file: Path, what: str) -> Any:
    """Read a value whose bytes are in a file: in the caller's thread, unless that would hold up the caller's loop."""
    caller = CALLER.get()
    if caller is not None and caller.asynchronous:
        return await asyncio.to_thread(values.unpack_wire, value, file, what=what)
    return await at_caller(lambda: values.unpack_wire(value, file, what=what))
