"""The documentation's pages as code: their blocks, which of them are run, and how."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from files import HOUSE

from gemel_ray.cli import main

PAGES = [HOUSE / "README.md", *sorted((HOUSE / "docs").rglob("*.md"))]
# Right before a block, why it is not run: <!-- not run: why -->, <!-- long: why -->, <!-- needs a GPU -->
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>(?:not run: |long: |needs a )[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SMALL = "generate: {length: 1024, cache_gib: 1.0}\n"  # ray_config.yaml of the folder: tests share a machine


@dataclass(frozen=True)
class Block:
    """Of a page; `mark` says why it is not run."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text, name = page.read_text(), str(page.relative_to(HOUSE))
    return [
        Block(name, text[: m.start("text")].count("\n"), m["language"], m["text"], m["mark"])
        for m in _BLOCK.finditer(text)
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The words behind every gemel-ray of a bash block. What goes into files is no command."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block.text, flags=re.MULTILINE | re.DOTALL)
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"(^|\s|bin/)gemel-ray\s", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for start in (n for n, word in enumerate(words) if re.fullmatch(r"(.*bin/)?gemel-ray", word)):
            end = next((n for n in range(start, len(words)) if words[n][0] in "&|;<>()"), len(words))
            yield words[start + 1 : end]


def prepared(folder: Path) -> Path:
    """The folder as the pages take it: the repository's, with small settings."""
    for name in ("gemel_ray", "deploy", "docs"):
        (folder / name).symlink_to(HOUSE / name)
    (folder / "ray_config.yaml").write_text(SMALL)
    return folder


def run(block: Block, folder: Path) -> str:
    """What it prints, or an AssertionError with what it complains of. Its gemel-ray is run by this process,
    which has imported already what each command would import."""
    command = ["bash", "-eu", "-o", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(HOUSE)}
    with (
        _serving(folder / "bin" / "gemel-ray") as asked,
        tempfile.TemporaryFile("w+") as printed,
        tempfile.TemporaryFile("w+") as said,
    ):
        with subprocess.Popen(
            [*command, block.text], cwd=folder, env=environment, stdout=printed, stderr=said
        ) as shell:
            while shell.poll() is None:
                with suppress(TimeoutError):
                    _answer(asked.accept()[0])
        for file in (printed, said):
            file.seek(0)
        assert shell.returncode == 0, f"{block}: {said.read()[-3000:]}"
        return printed.read()


@contextmanager
def _serving(command: Path) -> Iterator[socket.socket]:
    """Where the command's calls arrive."""
    with socket.create_server(("127.0.0.1", 0)) as asked:
        asked.settimeout(0.05)
        command.parent.mkdir(exist_ok=True)
        command.write_text(_COMMAND.format(python=sys.executable, port=asked.getsockname()[1]))
        command.chmod(0o755)
        yield asked


_COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as asked, asked.makefile("rw") as file:
    print(json.dumps([os.getcwd(), sys.argv[1:]]), file=file, flush=True)
    status, printed, said = json.loads(file.readline())
sys.stdout.write(printed)
sys.stderr.write(said)
sys.exit(status)
"""


def _answer(connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as file:
        folder, words = json.loads(file.readline())
        printed, said, status = io.StringIO(), io.StringIO(), 1
        with chdir(folder), redirect_stdout(printed), redirect_stderr(said):
            try:
                status = main(words)
            except SystemExit as stop:
                status = stop.code  # type: ignore[assignment]
            except Exception:
                traceback.print_exc()
        print(json.dumps([status, printed.getvalue(), said.getvalue()]), file=file)
