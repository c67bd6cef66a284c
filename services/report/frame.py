"""What every page has: its template, style, script, and the policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

HERE = Path(__file__).parent


def page_script() -> str:
    """Return the script of every page."""
    return (HERE / "page.js").read_text(encoding="utf-8")


def page_style() -> str:
    """Return the style of every page."""
    return (HERE / "page.css").read_text(encoding="utf-8")


@cache
def open_template(name: str) -> Template:
    """Return a page's template; what is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def content_policy(script: str) -> str:
    """Return a content security policy that allows this page's own script and no request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
