"""Debian's chromium without a window."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright

# As root, in a container, and with nothing to fetch from anywhere.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """Open a page; skip the test where there is no browser."""
    # `make test` installs it where it may, and says aloud where it may not.
    chromium = shutil.which("chromium") or pytest.skip("there is no chromium here: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield await browser.new_page()
        finally:
            await browser.close()
