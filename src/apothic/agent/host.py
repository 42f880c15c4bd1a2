"""Look over the machine that containers are to run on: for `apothic doctor`."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator

from apothic.agent.kernel import probe_host
from apothic.protocol.findings import Finding, State

# A server has a descriptor for each client and stream, an agent five for each container.
LEAST_FILES = 1024


def look() -> Iterator[Finding]:
    """Yield what there is to say of this machine."""
    yield Finding(
        "python", State.OK, f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    )
    yield _kernel()
    yield _files()
    yield from probe_host()


def _kernel() -> Finding:
    said = f"{platform.system()} {platform.release()}"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        hint = "containers need Linux 5.3 or newer, and a sandbox that lets pidfd_open through"
        return Finding("kernel", State.WRONG, f"{said}: there is no pidfd ({error})", hint)
    return Finding("kernel", State.OK, said)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < LEAST_FILES:
        return Finding(
            "open files", State.WRONG, f"at most {soft:,} at once", f"ulimit -n {min(hard, 65_536)} before the server"
        )
    return Finding("open files", State.OK, f"up to {soft:,} at once")
