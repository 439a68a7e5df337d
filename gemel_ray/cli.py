"""The command line: its verbs, and how a run ends.

Exit status: 0 done, 1 finished with only error rows (under --strict: with any), or with findings of check or
lint-deploy, 2 wrong usage or configuration, 130 by Ctrl-C, 141 where nobody reads the output, 143 by
SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from gemel_ray.arguments import Parser, parsed, parser
from gemel_ray.commands import (
    bench,
    build,
    check,
    configured,
    demo,
    doctor,
    evaluate,
    export_gemel,
    import_gemel,
    kb,
    link,
    lint_deploy,
    load,
    plan,
    say,
    serve,
    study,
    train,
)
from gemel_ray.errors import Mistake, Stopped
from gemel_ray.job.submitted import MISTAKES, stop_mistaken

_VERBS: dict[str, Callable[[Parser], None]] = {
    "demo": demo.add,
    "build": build.add,
    "check": check.add,
    "link": link.add,
    "evaluate": evaluate.add,
    "study": study.add,
    "train": train.add,
    "bench": bench.add,
    "serve": serve.add,
    "kb": kb.add,
    "load": load.add,
    "plan": plan.add,
    "import-gemel": import_gemel.add,
    "export-gemel": export_gemel.add,
    "lint-deploy": lint_deploy.add,
    "doctor": doctor.add,
}


def _quiet() -> None:
    """Silence libraries' progress bars and notices. Set the variables yourself to see them."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. An error that the user can correct is one line; a bug keeps its traceback."""
    root, verb = parser(_VERBS), ""
    _quiet()
    try:
        options = parsed(root, arguments)
        verb = f" {options.verb}"
        if options.config and not options.settings:
            configured(options, {})  # not needed here, but a wrong file is reported
        if isinstance(vars(options).get("workspace"), str):  # an address
            from gemel_ray.knowledge.remote import local_copy

            options.workspace = local_copy(options.workspace, say)
        status: int = options.run(options)
        sys.stdout.flush()
    except SystemExit as usage:  # argparse has printed an error or the help
        if usage.code:
            stop_mistaken()
        raise
    except BrokenPipeError:  # of `gemel-ray ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Mistake, OSError) as reason:
        say(f"gemel-ray{verb}: {reason}")
        if isinstance(reason, MISTAKES):
            stop_mistaken()
        return 2
    except Stopped as reason:
        say(f"gemel-ray{verb}: {reason}\nWhat is done stays; the same command continues from there.")
        return reason.status
    except KeyboardInterrupt:
        say("stopped; the same command continues from here")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
