"""The main job on real input: the source tree of this Python's standard library.

Deploys an app, maps a function over every file in parallel containers, has one file among them that is broken on
purpose, sums up in a background job that a second process re-attaches to by its id, and shows that job by `curl` and
by the command line. Everything it starts ends with it, and its data directory goes with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "data" / f"demo-{os.getpid()}"
os.environ["APOTHIC_DATA_DIR"] = str(DATA)

from rich import box  # noqa: E402 — the data directory is named before anything reads it
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402
from survey import Measures, Source, app, measure, summarise  # noqa: E402

BROKEN: Source = {"path": "broken_on_purpose.py", "text": "def fine():\n    return 1\n\ndef not_fine(:\n    return 2\n"}
screen = Console(highlight=False, soft_wrap=True)


def sources() -> Iterator[Source]:
    """Yield every module of the standard library, and of one that does not parse."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not left_out & set(inside.parts):
            yield {"path": str(inside), "text": path.read_text("utf-8", errors="replace")}
    yield BROKEN


def survey(files: list[Source]) -> tuple[list[Measures], list[BaseException]]:
    """Map over all files, with a bar; return what was measured, and what went wrong."""
    measures: list[Measures] = []
    wrong: list[BaseException] = []
    columns = (TextColumn("measure"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen) as progress:
        bar = progress.add_task("files", total=len(files))
        for found in measure.map_iter(files, ordered=False, return_exceptions=True):
            if isinstance(found, BaseException):
                wrong.append(found)
            else:
                measures.append(found)
            progress.advance(bar)
    return measures, wrong


def show(rows: list[dict[str, object]]) -> None:
    """Print the table."""
    table = Table(title="The standard library, by package (the twelve largest)", box=box.SIMPLE)
    for name in rows[0]:
        left = name in ("package", "longest function")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in rows[:12]:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    screen.print(table)


def run(*command: str) -> None:
    """Print a command and what it prints."""
    shown = " ".join(command)
    screen.print(f"\n[bold]$ {shown}[/]", soft_wrap=True)
    subprocess.run(["sh", "-c", shown], check=True)


def main() -> None:
    """Do all of it."""
    began = time.perf_counter()
    files = list(sources())
    screen.print(f"[bold]{len(files)} files of Python {sys.version.split()[0]}[/]; data directory {DATA}")
    deployment = app.deploy()
    screen.print(f"deployed {app.name} as {deployment}, server {app.client.base_url}")
    measures, wrong = survey(files)
    screen.print(f"measured {len(measures)} files; {len(wrong)} failed, as it should. Its remote traceback:")
    for error in wrong:
        print("".join(f"  ! {line}\n" for line in str(error.__cause__ or error).strip().splitlines()[-12:]), end="")
    job = summarise.spawn(measures)
    screen.print(f"\nspawned {job.job_id}; a second process re-attaches by that id while it runs:", soft_wrap=True)
    subprocess.run([sys.executable, str(HERE / "attach.py"), job.job_id], check=True)
    show(job.wait())
    screen.print("\nThe same job from outside. The key of this data directory is in its admin.key:")
    if shutil.which("curl"):
        key = f'"Authorization: Bearer $(cat {DATA.relative_to(Path.cwd())}/admin.key)"'
        run("curl", "-s", "-H", key, f"{app.client.base_url}/v1/jobs/{job.job_id}")
        print()
    run(str(Path(sys.executable).with_name("apothic").relative_to(Path.cwd())), "job", "show", job.job_id)
    screen.print(f"\n[bold]done in {time.perf_counter() - began:.1f} s[/]")


if __name__ == "__main__":
    try:
        main()
    finally:
        subprocess.run([sys.executable, "-m", "apothic", "down"], check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(DATA, ignore_errors=True)
