"""FastAPI as it is, with a websocket: the function returns the app. Its own pages are at `docs`, below its URL."""

from __future__ import annotations

import json
import urllib.request

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from websockets.sync.client import connect

import apothic

app = apothic.App("chat")


@app.asgi()
def web() -> FastAPI:
    """Make the app: once in each container."""
    api = FastAPI(title="Chat")
    said: list[str] = []

    @api.get("/said")
    def history() -> list[str]:
        return said

    @api.websocket("/room")
    async def room(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                said.append(await socket.receive_text())
                await socket.send_text(f"{len(said)}: {said[-1]}")
        except WebSocketDisconnect:
            return

    return api


def main() -> None:
    """Deploy it, talk over a websocket, and ask for what was said."""
    url = web.get_web_url()
    with connect(url.replace("http", "ws", 1) + "room") as socket:
        for text in ("hello", "is anybody here?"):
            socket.send(text)
            print(socket.recv())
    with urllib.request.urlopen(url + "said") as answer:
        print(json.load(answer))
    with urllib.request.urlopen(url + "openapi.json") as answer:
        print("the API at", url.split("/", 3)[3], "has", *json.load(answer)["paths"])


if __name__ == "__main__":
    main()
