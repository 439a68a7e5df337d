"""HTML pages from the templates beside this file. A page is one file that needs nothing else."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gemel_ray.evaluation import table

if TYPE_CHECKING:
    from jinja2 import Environment


def page(template: str, *, title: str, subtitle: str, **shown: Any) -> str:
    """The page of `template`, a file of templates/, with what it shows. Every value is escaped."""
    return _templates().get_template(template).render(title=title, subtitle=subtitle, **shown)


@cache
def _templates() -> Environment:
    """A name that a template asks for and nobody gives is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("gemel_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"value": table.value, "interval": table.interval, "heading": table.title}
    return found
