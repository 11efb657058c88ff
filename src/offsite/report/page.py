"""What every page has: our style, our scripts, and a policy under which nothing else runs or loads."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from offsite.report.figures import DEPTHS, plotly_js
from offsite.report.part import Part
from offsite.results.schema import ROWS

MARK = '<meta name="generator" content="offsite">'
"""What a page of ours holds near its beginning."""


def render(parts: Sequence[Part], title: str = "", lead: str = "") -> str:
    """The page of one part, or of several under a `title` and a `lead`; every string is escaped on its way in.

    Raises a UserError where plotly is not installed.
    """
    assert parts, "a page is about something"
    environment = Environment(
        loader=FunctionLoader(_package_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("part.html.jinja")
    level = 1 if len(parts) == 1 else 2
    bodies = [
        Markup(  # the template escapes what goes into it
            template.render(part=part, rows=ROWS, level=level, anchor=f"part-{place}")
        )
        for place, part in enumerate(parts)
    ]
    scripts = [plotly_js(), _package_text("page.js")]
    return environment.get_template("base.html.jinja").render(
        style=Markup(_package_text("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_csp_hash(script) for script in scripts],
        mark=Markup(MARK),
        title=title or parts[0].title,
        lead=lead,
        bodies=bodies,
        titles=[part.title for part in parts],
        private=list(dict.fromkeys(part.private for part in parts if part.private)),
        rows=ROWS,
        depths=DEPTHS,
    )


def _csp_hash(script: str) -> str:
    """The name by which the page's content security policy lets this one script run, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _package_text(name: str) -> str:
    return resources.files("offsite.report").joinpath(name).read_text(encoding="utf-8")
