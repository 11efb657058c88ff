"""What every command shares: errors of one sentence, results on standard output, outputs replacing nothing."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from offsite.errors import UserError, did_you_mean

USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for machines.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if an earlier run left one.")]
Seed = Annotated[int, typer.Option(help="Of everything random; the same seed gives the same numbers.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Ask only the first so many questions of each task.")]

_OURS = ("card.json", "config.json", "receipt.json", "results.json", "demo.json")


def run(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; whatever goes wrong is one sentence on standard error."""
    _quieten()
    try:
        code = app(args=args, standalone_mode=False)
    except KeyboardInterrupt:
        return _say(
            "Interrupted; nothing half-written was left. tune --resume and compare go on where they stopped.",
            INTERRUPTED,
        )
    except typer.Abort:
        return _say("Interrupted.", INTERRUPTED)
    except UserError as error:
        return _say(str(error), USER_ERROR)
    except OSError as error:
        return _say(_of_system(error), USER_ERROR)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's and typer's own: a wrong option, a missing argument
            return _say(_of_usage(app, error), USER_ERROR)
        if "No space left on device" in str(error):  # safetensors has an error type of its own
            return _say(
                "No space is left on the disk of the output; free some, or write elsewhere.", USER_ERROR
            )
        return _internal(error)
    return code if isinstance(code, int) else 0


def emit(data: Any, as_json: bool, show: Callable[[], None]) -> None:
    """The result of a command: JSON for machines, or what `show` prints for people."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, default=str))
    else:
        show()


def console() -> Console:
    """Where people read results."""
    return Console(highlight=False, soft_wrap=True)


def output(path: Path, force: bool) -> Path:
    """Check, before any work, that writing to `path` loses nothing: it is new, empty, or ours and `force`d."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    ours = path.is_dir() and any((path / name).exists() for name in _OURS)
    if force and (ours or path.is_file()):
        return path
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is already there; name another output, or add --force to replace it.")
    way = "or add --force to replace it" if ours else "as it holds other things than an earlier output"
    raise UserError(f"{str(path)!r} is already there; name another output, {way}.")


def _quieten() -> None:
    """Only our own words reach the screen; the libraries' advice is for their developers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"offsite: {' '.join(sentence.split())}\n")
    return code


def _of_system(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    where = f": {str(error.filename)!r}" if error.filename else ""
    return f"{error.strerror}{where}; check the path, its rights and the room on its disk."


def _of_usage(app: typer.Typer, error: Any) -> str:
    message = str(error.format_message()).rstrip(".")
    name = getattr(getattr(error, "ctx", None), "info_name", None)
    word = message.split("'")[1] if message.startswith("No such command") else None
    if word is not None:
        names = [command.name or "" for command in app.registered_commands]
        return f"There is no command {word!r}; {did_you_mean(word, names)}"
    command = f"offsite {name}" if name and name != "offsite" else "offsite"
    return f"{message}; `{command} --help` shows how."


def _internal(error: Exception) -> int:
    if os.environ.get("OFFSITE_DEBUG"):
        traceback.print_exception(error)
    kind = type(error).__name__
    return _say(
        f"This is a bug in offsite ({kind}: {error}); please report it with the output of `offsite doctor` "
        "and of the command run again under OFFSITE_DEBUG=1.",
        INTERNAL_ERROR,
    )
