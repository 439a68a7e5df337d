"""HTML pages from the templates in this folder. A page is one self-contained file."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gemel_ray.evaluation import table

if TYPE_CHECKING:
    from jinja2 import Environment


def page(template: str, *, title: str, subtitle: str, **shown: Any) -> str:
    """Render `template`, a file of templates/, with the values it shows. Every value is escaped."""
    return _templates().get_template(template).render(title=title, subtitle=subtitle, **shown)


@cache
def _templates() -> Environment:
    """The templates' environment. An undefined name in a template is an error."""
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
