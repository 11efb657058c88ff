"""What every page has: our style, our scripts, and a policy under which nothing else runs or loads."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from offsite.report.figures import plotly_js


def render(template: str, **values: Any) -> str:
    """The page of a `template` that extends base.html.jinja; all `values` are escaped on their way in.

    Raises a UserError where plotly is not installed.
    """
    loader = FunctionLoader(_package_text)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    scripts = [plotly_js(), _package_text("page.js")]
    return environment.get_template(template).render(
        style=Markup(_package_text("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_csp_hash(script) for script in scripts],
        **values,
    )


def _csp_hash(script: str) -> str:
    """The name by which the page's content security policy lets this one script run, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _package_text(name: str) -> str:
    return resources.files("offsite.report").joinpath(name).read_text(encoding="utf-8")
