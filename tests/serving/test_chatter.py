"""What a process prints, as the log gets it."""

import asyncio
import sys

import pytest
from foldind.lines import LONGEST_LINE
from foldind.worker.chatter import relay_lines


def relayed(script: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    async def run() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"import sys; {script}", stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        await relay_lines(process.stderr)
        await process.wait()

    asyncio.run(run())
    return [record.getMessage() for record in caplog.records if record.name == "foldind.worker.chatter"]


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("sys.stderr.write('one\\ntwo\\n\\n  three')", ["worker: one", "worker: two", "worker:   three"]),
        ("sys.stderr.buffer.write(b'caf\\xe9\\r\\n')", ["worker: caf\ufffd"]),
        ("", []),
        (f"sys.stderr.write('x' * {LONGEST_LINE} + '\\n')", ["worker: " + "x" * LONGEST_LINE]),
        (
            "sys.stderr.write('x' * 5_000_000 + '\\nshort\\n')",
            ["worker: " + "x" * LONGEST_LINE + "...", "worker: short"],
        ),
    ],
    ids=["lines", "no UTF-8", "nothing", "the longest", "longer"],
)
def test_lines(script: str, lines: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert relayed(script, caplog) == lines
