"""A page from its template: one file that loads nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from robust_ham.errors import visible


def render_page(template: str, *, paged: bool = False, **values: object) -> str:
    """HTML of a template beside this module, every value escaped and ``visible``.

    ``paged``: whether a table of it is paged, by a script of its own; no other script may run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    hashes = []
    for name in ["page.js", "paged.js"] if paged else ["page.js"]:
        script = environment.get_template(name).render()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        hashes.append(f"sha256-{digest}")
    return environment.get_template(template).render(script_hashes=hashes, is_paged=paged, **values)


def _finalize(value: object) -> object:
    """A value as the page shows it: markup is ours, other text may be somebody else's."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(str(value)) if is_text else value
