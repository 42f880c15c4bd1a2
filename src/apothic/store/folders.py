"""Directories whose entries are there after a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def make(folder: Path) -> None:
    """Create a directory for its owner alone, with those above it, and make their names last. Raises `OSError`."""
    if folder.is_dir():
        return
    make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync(folder.parent)


def sync(folder: Path) -> None:
    """Make the names in a directory last: a file's own sync does not promise its name. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
