"""How the command line is spelled: verbs, the options all of them share, and hints at wrong ones."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gemel_ray.errors import Mistake


def folder(text: str) -> Path:
    """Of this machine; an address would become a folder named s3:."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"takes a folder of this machine, not {text}")
    return Path(text)


def place(text: str) -> str | Path:
    """A folder of this machine, or an address."""
    return text if "://" in text else Path(text)


class Parser(argparse.ArgumentParser):
    """Names the nearest right option or verb beside a wrong one. Inputs stand before or after options."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own, which would refuse `bench speed --json INPUT`."""
        # argparse calls this again from within, and mixes no verbs, nor what stands behind a --.
        if self._intermixed or _inner(self) or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']+)'", message)
        known = [word for p in (self, *_inner(self)) for a in p._actions for word in a.option_strings]
        known += [name for a in self._actions for name in a.choices or ()]
        close = difflib.get_close_matches((wrong[1] or wrong[2]).split("=")[0], known, n=1) if wrong else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        self.exit(2, f"{self.prog}: {message}{hint}\n  {self.prog} --help lists what there is\n")


def _inner(outer: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The verbs' parsers: what the verb did not understand is told by the root."""
    places = [a for a in outer._actions if isinstance(a, argparse._SubParsersAction)]
    verbs = [verb for place in places for verb in place.choices.values()]
    return [verb for outer in verbs for verb in (outer, *_inner(outer))]


def parser(verbs: Mapping[str, Callable[[Parser], None]]) -> Parser:
    """All `verbs`, each by the function that adds its own options and explains it in its docstring."""
    root = Parser(
        prog="gemel-ray",
        description="Name the people, places and things in image-caption pairs: "
        "a language model writes the name.",
        epilog="First run: gemel-ray demo. Own data: gemel-ray build, then gemel-ray link.",
        allow_abbrev=False,
    )
    add_verbs(root, "verb", verbs)
    return root


def add_verbs(
    outer: argparse.ArgumentParser, kind: str, verbs: Mapping[str, Callable[[Parser], None]]
) -> None:
    """Give `outer` these verbs; which was called stands in the options under `kind`. What all share is taken
    where no further verb follows."""
    places = outer.add_subparsers(dest=kind, required=True, metavar=kind.upper(), parser_class=Parser)
    for name, add in verbs.items():
        about = (add.__doc__ or "").strip()
        verb = places.add_parser(
            name,
            help=about.splitlines()[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.set_defaults(settings=True)
        add(verb)
        if not _inner(verb):
            _add_shared(verb)


def _add_shared(made: Parser) -> None:
    """All verbs spell them alike; one with settings=False reads none, and refuses what changes any."""
    unless = "" if made.get_default("settings") else "; refused: this verb reads no settings"
    made.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="configuration file (default: ray_config.yaml in this folder, if there is one)",
    )
    made.add_argument(
        "--set",
        metavar="A.B=VALUE",
        action="append",
        default=[],
        help=f"override one setting, such as generate.beams=1 (repeatable){unless}",
    )
    made.add_argument(
        "--paper",
        action="store_true",
        help=f"use the paper's settings; --set overrides them{unless}",
    )


def parsed(root: Parser, words: Sequence[str] | None) -> argparse.Namespace:
    """The options, and in `given` how those were spelled that the words hold. Raises ValueError for --set and
    --paper where no settings are read."""
    options = root.parse_args(words)
    spelled = sys.argv[1:] if words is None else words
    options.given = {word.partition("=")[0] for word in spelled if word.startswith("--")}
    if not options.settings:
        refuse(options, ("--set", "--paper"), f"{options.verb} reads no settings")
    return options


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raise ValueError where one of these options was given: it would change nothing."""
    for name in names:
        if name in options.given:
            raise Mistake(f"{why}: leave out {name}")
