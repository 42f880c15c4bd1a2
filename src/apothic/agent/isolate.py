"""Level L0 around every container, whoever wrote its code: what a process gives up before it runs any of that.

A container starts in a session of its own, with nothing of others' open and an environment made from an allow-list; the
rest it does to itself, the same whether it was forked or has an interpreter of its own. Agent and containers are child
subreapers: a container keeps the orphans of its jobs below itself while it lives, so every child of the agent that is
no live container is a leftover of a dead one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

# Names the containers of one agent; what a job starts inherits it, so that a later agent can find what is left over.
MARK = "APOTHIC_CONTAINER"

# What finds programs, libraries, certificates, places and times. Nothing that commonly holds a secret: proxies may
# have a password in their URL, so they are not here.
_ALLOWED = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ PYTHONPATH PYTHONHOME PYTHONHASHSEED VIRTUAL_ENV LD_LIBRARY_PATH
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CUDA_VISIBLE_DEVICES CUDA_HOME NVIDIA_VISIBLE_DEVICES
    NVIDIA_DRIVER_CAPABILITIES OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS NUMEXPR_NUM_THREADS
    """.split()  # noqa: SIM905
)


def environment(parent: Mapping[str, str], *, mark: str, tmp: Path) -> dict[str, str]:
    """Return a container's environment, made from that of its agent."""
    clean = {name: value for name, value in parent.items() if name in _ALLOWED or name.startswith("LC_")}
    if "PYTHONPATH" in clean:  # a container works in another directory
        places = clean["PYTHONPATH"].split(os.pathsep)
        clean["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in places if place)
    return clean | {MARK: mark, "TMPDIR": str(tmp), "PYTHONUNBUFFERED": "1", "APOTHIC_AUTOSTART": "0"}


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def adopt_orphans() -> None:
    """Make this process the one that inherits the orphans below it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def follow(parent: int) -> None:
    """End with our parent, the agent of pid `parent`; at once if that one is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above; nobody would tell us
        os._exit(1)


def confine(parent: int) -> None:
    """Give up what a container does not need. `parent` is the agent's pid; the process ends if that one is gone."""
    follow(parent)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    adopt_orphans()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
