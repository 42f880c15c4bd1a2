"""A server of any kind: here Python's own, which shows a directory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import urllib.request

import apothic

app = apothic.App("files")


@app.web_server(0, startup_timeout=30)
def library(port: int) -> None:
    """Start it on the port that the container has been given."""
    folder = sysconfig.get_paths()["stdlib"]
    subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", folder])


def main() -> None:
    """Deploy it, and read the beginning of a file."""
    with urllib.request.urlopen(library.get_web_url() + "this.py") as answer:
        print(answer.headers["Server"].split()[0], answer.readline().decode().strip())


if __name__ == "__main__":
    main()
