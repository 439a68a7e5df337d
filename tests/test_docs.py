"""The documentation: its commands run, or at least parse, its links lead somewhere, what is made is fresh."""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pages import HOUSE, PAGES, Block, blocks, commands, prepared, run

from gemel_ray.arguments import parser
from gemel_ray.cli import _VERBS
from gemel_ray.config import load
from gemel_ray.documenting import pages

RUN = ("docs/guide.md", "docs/knowledge_base.md", "docs/adding_a_stage.md")  # each in a folder of its own
ELSEWHERE = ("docs/serving.md",)  # test_serving_docs.py, against a running endpoint
ALL = [block for page in PAGES for block in blocks(page)]
BASH = [block for block in ALL if block.language == "bash"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^```", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page))
    assert [str(b) for b in blocks(page) if not b.language] == []


@pytest.mark.parametrize("block", BASH, ids=str)
def test_a_command_is_run_or_says_why_not(block: Block) -> None:
    assert block.mark or block.page in (*RUN, *ELSEWHERE), f"{block}: no test runs it, and no mark says why"


@pytest.mark.parametrize("block", BASH, ids=str)
def test_options_are_those_there_are(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(block):
        try:
            options = parser(_VERBS).parse_args(words)
        except SystemExit:
            pytest.fail(f"{block}: gemel-ray {' '.join(words)}\n{capsys.readouterr().err}")
        load(None, {}, options.set)  # raises for a setting that is not


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_in_the_text_are_those_there_are(page: Path) -> None:
    assert set(re.findall(r"`gemel-ray ([a-z][a-z-]*)", page.read_text())) <= set(_VERBS)


@pytest.mark.parametrize("block", [b for b in ALL if b.language in ("json", "yaml")], ids=str)
def test_examples_of_json_and_yaml_can_be_read(block: Block) -> None:
    read = json.loads if block.language == "json" else yaml.safe_load
    assert read(block.text.replace("[...]", "[]")) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    lost = [link for link in links if not (page.parent / link).exists()]
    assert lost == []


# Words that readers stumble over, and what to write: docs/glossary.md has the terms.
ODD = {
    r"\btold\b": "given, named, shown",
    r"\bh(e|o)lds? (\w+ ){0,2}against\b": "checked against, compared with",
    r"\bso many\b": "the number",
    r"\bwhoever\b": "anybody who",
    r"\banew\b": "again",
    r"(?<!there )\b(is|are) no (?!longer)[a-z]": "is not a, are not",
}
ODD_NAMES = {"told", "tell", "heard", "held", "own", "behind", "witness"}  # as parts of names in the code
# A term of the field, a file's key, and names of ranker files.
KEPT = {"held_out", "_HELD_OUT", "own_peak_mib", "facts told", "facts told less", "rarest fact told"}

READ = [*PAGES, *HOUSE.glob("[cd]*/README.md")]


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(HOUSE)))
def test_a_page_is_plain_english(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = [(m[0], better) for odd, better in ODD.items() for m in re.finditer(odd, prose, re.IGNORECASE)]
    assert found == []


CODE = sorted((HOUSE / "gemel_ray").rglob("*.py"))


def names(tree: ast.AST) -> Iterator[str]:
    """What a module defines: functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def strings(tree: ast.AST) -> Iterator[str]:
    """A module's texts, docstrings and messages among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"`[^`]*`", "", " ".join(node.value.split()))


def comments(text: str) -> Iterator[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def test_names_and_sentences_of_the_code_are_plain_english() -> None:
    found = set()
    for file in CODE:
        text = file.read_text()
        tree = ast.parse(text)
        odd = [n for n in names(tree) if ODD_NAMES & set(n.lower().split("_")) and n not in KEPT]
        sentences = [s for s in (*strings(tree), *comments(text)) if s not in KEPT]
        odd += [m[0] for s in sentences for word in ODD for m in re.finditer(word, s, re.IGNORECASE)]
        odd += [s for s in strings(tree) if s.startswith("Of ")]  # a docstring begins with a verb or a noun
        found |= {f"{file.relative_to(HOUSE)}: {one}" for one in odd}
    assert sorted(found) == []


def test_every_page_is_in_the_index() -> None:
    index = (HOUSE / "docs" / "README.md").read_text()
    names = {page.name for page in PAGES if page.parent == HOUSE / "docs"} - {"README.md"}
    assert [name for name in sorted(names) if f"]({name})" not in index] == []


@pytest.mark.parametrize("name", ["ray_config.yaml", "docs/configuration.md", "docs/commands.md"])
def test_made_pages_are_fresh(name: str) -> None:
    file = HOUSE / name
    assert file.read_text() == pages(HOUSE)[file], f"{file} is not what the code says: make docs"


def verbs(outer: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the verbs, and of their verbs."""
    for action in outer._actions:
        for verb in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield verb
            yield from verbs(verb)


@pytest.mark.parametrize("verb", list(verbs(parser(_VERBS))), ids=lambda verb: verb.prog)
def test_help_says_what_an_option_is(verb: argparse.ArgumentParser) -> None:
    """With its default, once: --rounds 1 is "rounds of the engine alone (default: 1)"."""
    about = {action.dest: action.help or "" for action in verb._actions if action.dest != "action"}
    usual = {action.dest for action in verb._actions if isinstance(action.default, int | float | Path)}
    usual -= {action.dest for action in verb._actions if action.nargs == 0}  # a switch is off
    assert [name for name, text in about.items() if re.match(r"$|\(|of |\d", text)] == []
    assert [name for name in usual if about[name].count("default") != 1] == []


def test_every_verb_has_an_example() -> None:
    shown = {words[0] for b in blocks(HOUSE / "docs" / "commands.md") for words in commands(b) if words}
    assert sorted(set(_VERBS) - shown) == []


def test_the_example_of_a_stage_prints_what_stands_below_it(tmp_path: Path) -> None:
    """Its programs, one after the other, print what stands behind them."""
    page = blocks(HOUSE / "docs" / "adding_a_stage.md")
    programs, outputs = ([b for b in page if b.language == kind] for kind in ("python", "text"))
    assert len(programs) == len(outputs) == 2
    whole = "".join(b.text for b in programs)
    printed = run(Block(page[0].page, page[0].line, "python", whole, None), tmp_path)
    assert printed == "".join(b.text for b in outputs)


@pytest.mark.slow
def test_the_knowledge_base_s_commands_do_what_the_page_says(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    said = [run(b, folder) for b in blocks(HOUSE / "docs" / "knowledge_base.md") if not b.mark]
    assert said[0].splitlines()[-1] == "cities"
    versions = said[1].splitlines()
    assert [line.split()[0] for line in versions[:3]] == ["1", "2", "3"]
    assert "* " in versions[-2]
    assert "3 entities" in versions[-2]  # one came, one went
    assert versions[-1] == "2"  # and back again


@pytest.mark.slow
@pytest.mark.ray
def test_the_guide_s_commands_print_what_stands_there(tmp_path: Path) -> None:
    """From a knowledge base to links and their evaluation, as it stands there."""
    folder = prepared(tmp_path)
    said = {b.text: run(b, folder) for b in blocks(HOUSE / "docs" / "guide.md") if not b.mark}
    (rows,) = (text for block, text in said.items() if "read_table" in block)
    lines = [line.split(maxsplit=3) for line in rows.splitlines()]
    assert [(d, m, s) for d, m, s, _ in lines] == [
        ("p1", "Adobe", "linked"),
        ("p2", "AWS", "linked"),
        ("p3", "Adobe", "linked"),
        ("p3", "Honda", "linked"),
        ("p4", "Honda", "error"),
    ]
    assert "none.jpg: there is no such file" in lines[-1][3]
    assert "<html" in (folder / "report.html").read_text()
