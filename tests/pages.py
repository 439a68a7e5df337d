"""The documentation's pages as code: their blocks, which of them are run, and how."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).parents[1]
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
    """The folder as the pages take it: the repository's, with gemel-ray on the path and small settings."""
    for name in ("gemel_ray", "deploy", "docs"):
        (folder / name).symlink_to(HOUSE / name)
    (folder / "ray_config.yaml").write_text(SMALL)
    command = folder / "bin" / "gemel-ray"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gemel_ray.cli "$@"\n')
    command.chmod(0o755)
    return folder


def run(block: Block, folder: Path) -> str:
    """What it prints, or an AssertionError with what it complains of."""
    command = ["bash", "-eu", "-o", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, block.text],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}: {done.stderr[-3000:]}"
    return done.stdout
