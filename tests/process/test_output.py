"""What a job prints, to the last byte and in order. Real child processes, no control plane."""

from __future__ import annotations

import asyncio

import pytest
from containerbench import MIB, Bench


async def _run(bench: Bench, code: str, **options: object) -> str:
    """Run `f` once, wait for its end, however that is, and return its token."""
    token = bench.give(bench.start(code, **options))
    await bench.outcome(token)
    return token


async def test_stdout_and_stderr_come_in_the_order_they_were_written(bench: Bench) -> None:
    code = """
        import sys
        def f():
            for n in range(200):
                print(n, file=sys.stderr if n % 3 else sys.stdout)
    """
    token = await _run(bench, code)

    assert bench.text(token) == [str(n) for n in range(200)]
    assert [line.stream for line in bench.lines(token)] == ["stderr" if n % 3 else "stdout" for n in range(200)]


async def test_the_end_comes_after_the_last_line(bench: Bench) -> None:
    code = """
        import os, sys
        def f():
            print("whole")
            os.write(1, b"past python")
            print("no newline", end="")
    """
    token = await _run(bench, code)

    assert sorted(bench.text(token)) == ["no newline", "past python", "whole"]
    assert bench.told(token)[-1].outcome is not None


async def test_what_was_printed_before_a_sudden_end_is_kept(bench: Bench) -> None:
    code = """
        import os, sys
        def f():
            print("with a newline")
            print("flushed", end="", flush=True)
            print("on stderr", file=sys.stderr)
            os.write(1, b"raw")
            os._exit(0)
    """
    token = await _run(bench, code)

    assert set(bench.text(token)) == {"with a newline", "flushed", "on stderr", "raw"}


async def test_ten_megabytes_in_one_print(bench: Bench) -> None:
    token = await _run(bench, f"def f(): print(('x' * 99 + '\\n') * {10 * MIB // 100}, end='')")

    assert bench.text(token) == ["x" * 99] * (10 * MIB // 100)
    assert len(bench.frames) >= 10


async def test_ten_megabytes_in_many_prints_then_a_sudden_end(bench: Bench) -> None:
    code = """
        import os
        def f():
            for n in range(100_000): print(f"{n:099}")
            os._exit(1)
    """
    token = await _run(bench, code)

    assert [int(text) for text in bench.text(token)] == list(range(100_000))


@pytest.mark.parametrize("deed", ["print(LINE)", "os.write(1, LINE.encode() + b'\\n')", "print(LINE, end='')"])
async def test_a_line_of_a_megabyte_is_split(bench: Bench, deed: str) -> None:
    code = f"""
        import os
        LINE = "äbc" * 350_000
        def f():
            {deed}
            print("next")
    """
    if deed.startswith("os"):
        code = code.replace("os.write(1, ", "whole(")
        code += """
        def whole(data):
            while data: data = data[os.write(1, data):]
        """
    token = await _run(bench, code)

    lines = bench.lines(token)
    long = [line for line in lines if line.text != "next"]
    if deed.endswith("end='')"):
        assert "".join(line.text for line in lines) == "äbc" * 350_000 + "next"
    else:
        assert "".join(line.text for line in long) == "äbc" * 350_000
        assert [line.cont for line in long] == [True] * (len(long) - 1) + [False]
    assert all(len(line.text.encode()) <= 16 * 1024 for line in lines)


async def test_what_is_no_utf8_is_escaped(bench: Bench) -> None:
    code = """
        import os, sys
        def f():
            os.write(1, b"\\xff\\xfe raw\\n")
            sys.stdout.buffer.write(b"caf\\xe9\\n")
            sys.stdout.flush()
            print("lone \\ud800 surrogate")
            print("fine: \\u00e4\\u20ac\\U0001f600")
    """
    token = await _run(bench, code)

    assert set(bench.text(token)) == {
        "\\xff\\xfe raw", "caf\\xe9", "lone \\ud800 surrogate", "fine: \u00e4\u20ac\U0001f600",
    }  # fmt: skip


async def test_the_output_of_programs_that_a_job_starts_is_its_own(bench: Bench) -> None:
    code = """
        import os, subprocess
        def f():
            subprocess.run("echo out; echo err >&2", shell=True)
            os.system("printf 'no newline'")
    """
    token = await _run(bench, code)

    assert {(line.stream, line.text) for line in bench.lines(token)} == {
        ("stdout", "out"), ("stderr", "err"), ("stdout", "no newline"),
    }  # fmt: skip


async def test_each_job_gets_what_it_printed_and_nothing_else(bench: Bench) -> None:
    code = """
        import os
        def f(n):
            print("a", n)
            os.write(2, b"b %d\\n" % n)
            print(n, end="")
    """
    container = bench.start(code)

    tokens = [bench.give(container, n) for n in range(50)]
    for n, token in enumerate(tokens):
        await bench.outcome(token)
        assert sorted(bench.text(token)) == sorted([f"a {n}", f"b {n}", str(n)])


async def test_inputs_that_run_at_once_keep_their_lines_apart(bench: Bench) -> None:
    code = """
        import asyncio, sys
        async def f(n):
            for _ in range(20):
                print("half", end=" ")
                await asyncio.sleep(0)
                print("of", n, file=sys.stdout)
    """
    container = bench.start(code, concurrent_requests=4)

    tokens = [bench.give(container, n) for n in range(4)]
    for n, token in enumerate(tokens):
        await bench.outcome(token)
        assert bench.text(token) == [f"half of {n}"] * 20


async def test_a_thread_of_the_only_job_prints_for_it(bench: Bench) -> None:
    code = """
        import threading
        def f():
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start()
            thread.join()
    """
    token = await _run(bench, code)

    assert bench.text(token) == ["from a thread"]


async def test_the_streams_look_like_files(bench: Bench) -> None:
    code = """
        import io, sys
        def f():
            out = sys.stdout
            return [out.fileno(), sys.stderr.fileno(), out.isatty(), out.encoding, out.errors, out.writable(),
                    out.line_buffering, isinstance(out, io.TextIOBase), hasattr(out, "buffer"), out.name]
    """
    assert await bench.run(code) == [1, 2, False, "utf-8", "backslashreplace", True, True, True, True, "<stdout>"]


async def test_a_stream_that_a_job_closed_is_there_again_for_the_next(bench: Bench) -> None:
    container = bench.start("import sys\ndef f():\n    print('here')\n    sys.stdout.close()")

    for token in [bench.give(container), bench.give(container)]:
        await bench.outcome(token)
        assert bench.text(token) == ["here"]


async def test_a_signal_handler_that_prints_while_the_job_prints(bench: Bench) -> None:
    code = """
        import signal
        def tick(*_): print("tick")
        def f():
            signal.signal(signal.SIGALRM, tick)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for n in range(20_000): print("line", n)
            signal.setitimer(signal.ITIMER_REAL, 0)
    """
    token = await _run(bench, code)

    lines = [text for text in bench.text(token) if "tick" not in text]
    assert len(lines) >= 19_990  # a handler between the text and the newline of one print joins the two
    assert any("tick" in text for text in bench.text(token))


@pytest.mark.parametrize("bench", [{"acknowledge": False}], indirect=True)
async def test_unacknowledged_output_stops_the_program_and_is_never_dropped(bench: Bench) -> None:
    container = bench.start("def f():\n    for n in range(260_000): print(f'{n:063}')")

    token = bench.give(container)
    await bench.until(lambda: bench.outbox.full)
    while True:  # until nothing more comes: the program waits
        seen = len(bench.lines(token))
        await asyncio.sleep(0.3)
        if len(bench.lines(token)) == seen:
            break
    assert not any(report.outcome for report in bench.told(token))
    assert sum(len(text) for text in bench.text(token)) < 20 * MIB
    bench.acknowledge = True
    bench.outbox.acknowledged(bench.frames[-1].number)

    await bench.outcome(token, seconds=60)
    assert [int(text) for text in bench.text(token)] == list(range(260_000))
