"""HTML pages from templates: one file each, nothing loaded from elsewhere.

Everything that goes into a page is escaped; what is markup already, such as the figures that
galsep draws, is marked so in the templates.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_page"]


def render_page(template: str, **values: Any) -> str:
    """Fill a template of ``galsep/plot/templates``.

    Parameters
    ----------
    template : str
        File name.
    **values
        What the template names.
    """
    page = _environment().get_template(template).render(values)
    # File names may be no text at all.
    return page.encode("utf-8", "replace").decode("utf-8")


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("galsep.plot"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
