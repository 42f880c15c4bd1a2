"""The app behind the reference page's tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import apothic

app = apothic.App("page")


@app.function(timeout_s=120, retries=apothic.Retries(2, initial_delay_s=0.1), max_containers=2)
def double(number: int) -> int:
    print("doubling", number)
    return 2 * number


@app.function()
@apothic.concurrent(max_inputs=3)
def add(a: int, b: int) -> int:
    return a + b


@app.function()
def held(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"


@app.function(stream_window=3)
def letters(word: str) -> Iterator[str]:
    print("spelling", word)
    yield from word
    if not word.isalpha():
        raise ValueError(f"{word} is no word")


@app.endpoint(path="/{name}")
def greet(name: str) -> str:
    return f"hello {name}"
