"""offsite doctor."""

from __future__ import annotations

import importlib.util

from rich.text import Text

from offsite.cli.options import Json
from offsite.cli.shell import console, emit

NAME = "doctor"
HELP = """Print versions, processor features and missing packages, for a bug report.

Example: `offsite doctor`
"""
_EXTRAS = {
    "models": ("gguf", "pip"),
    "data": ("pyarrow", "datasets"),
    "report": ("plotly",),
    "sign": ("model_signing", "OpenSSL"),
}


def command(json: Json = False) -> None:
    """Collect what a bug report needs; nothing is downloaded, and no local path is printed."""
    data = _facts()

    def show() -> None:
        for topic, value in data.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            console().print(Text.assemble((f"{topic:<10}", "bold"), f" {text}"))

    emit(data, json, show)


def _facts() -> dict[str, object]:
    import torch

    from offsite.download.wheels import cache_dir
    from offsite.model.loading import NAMED
    from offsite.model.precision import bf16_pays
    from offsite.provenance import PACKAGES, machine, versions

    missing = {
        extra: " and ".join(absent)
        for extra, needed in _EXTRAS.items()
        if (absent := [name for name in needed if importlib.util.find_spec(name) is None])
    }
    cached = [name for name in NAMED if (cache_dir() / "models" / name).is_dir()]
    return {
        "versions": versions((*PACKAGES, "accelerate", "gguf", "plotly", "pyarrow", "typer", "pydantic")),
        "machine": machine(),
        "processor": torch.backends.cpu.get_cpu_capability() + ("; bfloat16 pays" if bf16_pays() else ""),
        "cached": ", ".join(cached) or "no named model yet; `offsite fetch smollm2-135m` brings one",
        "missing": {f"offsite[{extra}]:": f"{names} not found" for extra, names in missing.items()}
        or "nothing",
    }
