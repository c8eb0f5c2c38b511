"""Render a page from its template: one file that loads nothing and runs only its own scripts."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from robust_ham.errors import plural, visible


def render_page(template: str, *, paged: bool = False, **values: object) -> str:
    """Return the HTML of a template in ``template/``, with every value escaped and ``visible``.

    Only the scripts of ``template/`` may run; ``paged`` adds the one that pages long tables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["plural"] = plural
    hashes = []
    for name in ["page.js", "paged.js"] if paged else ["page.js"]:
        script = environment.get_template(name).render()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        hashes.append(f"sha256-{digest}")
    return environment.get_template(template).render(script_hashes=hashes, is_paged=paged, **values)


def _finalize(value: object) -> object:
    """Return a value as the page shows it: text that is not our markup is made ``visible``."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(str(value)) if is_text else value
