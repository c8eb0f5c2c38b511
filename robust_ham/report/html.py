"""A page from its template: one file that loads nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from robust_ham.errors import visible


def render_page(template: str, **values: object) -> str:
    """HTML of a template beside this module, every value escaped and ``visible``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script_hash=f"sha256-{digest}", **values)


def _finalize(value: object) -> object:
    """A value as the page shows it: markup is ours, other text may be somebody else's."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(str(value)) if is_text else value
