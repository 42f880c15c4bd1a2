"""A streaming endpoint: a generator whose items are sent as they come; as server-sent events, when asked for so."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator

import apothic

app = apothic.App("tokens")


@app.endpoint()
async def say(text: str, pause_s: float = 0.02) -> AsyncIterator[str]:
    """Yield the words of a text, one after the other."""
    for word in text.split():
        yield word + " "
        await asyncio.sleep(pause_s)


def main() -> None:
    """Deploy it, and read its words as they come: as text, and as a browser's `EventSource` does."""
    url = say.get_web_url() + "?text=one%20two%20three"
    with urllib.request.urlopen(url) as answer:
        print(answer.headers["Content-Type"], answer.read().decode())
    request = urllib.request.Request(url, headers={"Accept": "text/event-stream"})
    with urllib.request.urlopen(request) as answer:
        print(*(line.decode().strip() for line in answer if line.strip()))


if __name__ == "__main__":
    main()
