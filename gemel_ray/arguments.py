"""The syntax of the command line: verbs, the options that all share, and hints for wrong ones."""

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
    """A folder of this machine. Refuses an address, which would become a folder named s3:."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"takes a folder of this machine, not {text}")
    return Path(text)


def place(text: str) -> str | Path:
    """A folder of this machine, or an address."""
    return text if "://" in text else Path(text)


class Parser(argparse.ArgumentParser):
    """Suggests the nearest option or verb for a wrong one. Inputs may come before or after options."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which would refuse `bench speed --json INPUT`."""
        # argparse calls this recursively, and does not intermix verbs, nor what follows a --.
        if self._intermixed or _has_verbs(self) or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. The verb reports what it did not understand: its options are the likely ones."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            _called(self, options).error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']+)'", message)
        likely = self._likely((wrong[1] or wrong[2]).split("=")[0]) if wrong else ""
        hint = f" (did you mean {likely}?)" if likely else ""
        self.exit(2, f"{self.prog}: {message}{hint}\n  {self.prog} --help lists what there is\n")

    def _likely(self, wrong: str) -> str:
        """The option, verb or setting that may be meant; or an empty text."""
        known = [word for a in self._actions for word in (*a.option_strings, *(a.choices or ()))]
        if wrong.startswith("--") and self.get_default("settings") and (found := _setting(wrong[2:])):
            return f"--set {found}=VALUE"
        return next(iter(difflib.get_close_matches(wrong, known, n=1)), "")


def _setting(option: str) -> str | None:
    """The full name of the setting that was taken for an option: generate.beams for --beams."""
    from gemel_ray.checked import full_names
    from gemel_ray.config import Config

    name = option.replace("-", "_")
    return next((full for full in full_names(Config) if name in (full, full.rpartition(".")[2])), None)


def _called(outer: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the verb that these options are of."""
    for place in outer._actions:
        if isinstance(place, argparse._SubParsersAction):
            return _called(place.choices[getattr(options, place.dest)], options)
    return outer


def _has_verbs(outer: argparse.ArgumentParser) -> bool:
    return any(isinstance(action, argparse._SubParsersAction) for action in outer._actions)


class _Version(argparse.Action):
    """Prints the installed version, which is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"gemel-ray {version('gemel-ray')}")
        parser.exit()


def parser(verbs: Mapping[str, Callable[[Parser], None]]) -> Parser:
    """The parser of all `verbs`; each function adds its verb's options, and its docstring explains it."""
    root = Parser(
        prog="gemel-ray",
        description="Name the people, places and things in image-caption pairs: "
        "a language model writes the name.",
        epilog="First run: gemel-ray demo. Own data: gemel-ray build, then gemel-ray link.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action=_Version, help="show the version and exit")
    add_verbs(root, "verb", verbs)
    return root


def add_verbs(
    outer: argparse.ArgumentParser, kind: str, verbs: Mapping[str, Callable[[Parser], None]]
) -> None:
    """Add these verbs to `outer`; the options have the one that was called under `kind`. The shared options
    are added where no further verb follows."""
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
        if not _has_verbs(verb):
            _add_shared(verb)


def _add_shared(made: Parser) -> None:
    """Add the options that all verbs share; one with settings=False refuses those that change settings."""
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
    """The options, and in `given` the spelling of those that were given. Raises ValueError for --set and
    --paper where no settings are read."""
    options = root.parse_args(words)
    spelled = sys.argv[1:] if words is None else words
    options.given = {word.partition("=")[0] for word in spelled if word.startswith("--")}
    if not options.settings:
        refuse(options, ("--set", "--paper"), f"{options.verb} reads no settings")
    return options


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raise ValueError if one of these options was given: it would have no effect."""
    for name in names:
        if name in options.given:
            raise Mistake(f"{why}: leave out {name}")
