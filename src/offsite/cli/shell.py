"""What every command shares: errors of one sentence, results on standard output, no output overwritten."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from offsite import launchers
from offsite.errors import UserError, brief, did_you_mean
from offsite.files.atomic import (
    held,
    indented,
    mend,
    parents_of,
    remove,
    staged,
    was_cut_off,
    write_json,
)
from offsite.files.places import check, check_parent, check_removable
from offsite.provenance import call

USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130

_MARK = "offsite.json"
_WRITTEN = {  # what marks a folder as ours, and what we put beside it, besides the "files" that it names
    "card.json": ("model.sig",),
    _MARK: (),
    "receipt.json": ("report.html",),
    "profile.json": ("report.html",),
    "results.json": ("report.html", "table.md", "table.tex"),
    "frontier.json": ("report.html", "emulator", "emulator-receipt"),
    "demo.json": (
        "profile", ".profile.profiling", "emulator", "emulator-receipt", ".emulator.profiling", "adapter",
        "adapter-receipt", ".adapter.tuning", "tuned-model", "tuned-model-receipt", "scores.json", "comparison",
        ".comparison.stages", "report.html",
    ),
}  # fmt: skip
_TRACKERS = ("mlflow", "trackio", "wandb")
_LACKS = {  # by the words of libraries that have no error type for it
    "No space is left on the disk of the output; free some, or write elsewhere.": (
        "No space left on device", "PytorchStreamWriter failed", "inline_container.cc",
    ),
    "There is not enough memory for this; take a smaller model, batch size or length.": (
        "out of memory", "can't allocate memory",
    ),
}  # fmt: skip


def run(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; whatever goes wrong is one sentence on standard error."""
    _quieten()
    launchers.drop()  # a command is one process and opens no socket
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows a mark for what it lacks
    words = [_expanded(word) for word in (sys.argv[1:] if args is None else args)]
    try:
        code = app(args=words, standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        return _print_error(*_explained(app, error))
    if code == INTERRUPTED:  # typer makes this of KeyboardInterrupt
        return _print_error(
            "Interrupted, with nothing half-written left; tune --resume, profile, compress, compare and "
            "frontier go on from what they had done.",
            INTERRUPTED,
        )
    return code if isinstance(code, int) else 0


def emit(data: object, as_json: bool, show: Callable[[], None]) -> None:
    """Print the result of a command: as JSON, or as `show` prints it for people."""
    if as_json:
        typer.echo(indented(data))
    else:
        show()


def console() -> Console:
    """Make the console for results; text in brackets is no markup."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def output(path: Path, force: bool, apart_from: Sequence[Path | str] = (), *, file: bool = False) -> Path:
    """Check, before any work, that a folder (or a `file`) can be written at `path` and that nothing is lost.

    It is new, empty, or ours and `force`d; it is neither in nor around what the command reads (`apart_from`,
    where words that are no paths are passed over).
    """
    if file and path.is_dir():
        raise UserError(f"{str(path)!r} is a folder where a file is to be written; name a file.")
    check_parent(path) if file else check(path)
    if path.is_mount():
        raise UserError(f"{str(path)!r} is a mount point and cannot be replaced; name a folder inside it.")
    for other in apart_from:
        _refuse_overlap(path, other)
    mend(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    ours = _is_ours(path)
    if not (ours and force):
        way = "or add --force to replace it" if ours else "for it holds other things than an earlier output"
        raise UserError(f"{str(path)!r} is already there; name another output, {way}.")
    if path.is_dir():
        check_removable(path)
    return path


def outputs(out: Path, receipt: Path | None, force: bool, apart_from: Sequence[Path | str] = ()) -> Path:
    """`output` for `out` and for the `receipt` that goes with it (default: OUT-receipt), which is returned.

    A kill between the two renames leaves a receipt without its output; the same call removes it.
    """
    check(out)
    receipt = receipt or beside(out, "-receipt")
    if not force and was_cut_off(out) and _is_ours(receipt) and _called(receipt) == call():
        remove(receipt)
    output(out, force, apart_from)
    return output(receipt, force, [*apart_from, out])


@contextmanager
def staged_with(receipt: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Folders for the `receipt` and for `out`, as `staged`; the receipt takes its name first.

    So no complete output lacks its receipt, without which its adapters would be refused.
    """
    alone = not receipt.exists()
    try:
        with staged(out) as folder, staged(receipt) as notes:
            yield notes, folder
    except BaseException:
        if alone and not out.exists():
            remove(receipt)
        raise


def beside(out: Path, ending: str) -> Path:
    """Name a path beside the output `out`; hidden where the `ending` begins with a dot."""
    return out.with_name(f".{out.name}{ending}" if ending.startswith(".") else f"{out.name}{ending}")


def mark(folder: Path, about: dict[str, object]) -> None:
    """Write into a checkpoint `folder` what it was made from, by which `output` recognises it.

    A checkpoint is for others too, so the call, which may hold local paths, and the machine are left out.
    """
    from offsite.provenance import record

    files = sorted(file.name for file in folder.iterdir())
    data = {name: message for name, message in record(0).items() if name in ("versions", "date")}
    write_json(folder / _MARK, {"made by": "offsite", **about, "files": files, "record": data})


@contextmanager
def leftovers(work: Path, is_resumable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the folder `work`, from which an interrupted run resumes; remove it when the block ends well.

    After an error it stays only if it `is_resumable`; after a UserError, only if it was there before. Raises
    UserError where another process works in it.
    """
    with parents_of(work.resolve()), held(work):
        new = not any(work.iterdir())
        try:
            yield work
        except BaseException as error:
            if new if isinstance(error, UserError) else not is_resumable(work):
                remove(work)
            raise
        remove(work)


@contextmanager
def stages(cache: Path | None, work: Path, is_resumable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the folder for finished stages: the `cache`, which stays, or `work`, until the block ends well.

    After an error `work` stays if it `is_resumable`; unlike `leftovers`, also after a UserError: a tuning that
    diverges in the last cell must not cost all the others.
    """
    folder = cache or work
    with parents_of(folder.resolve()), held(folder):
        try:
            yield folder
        except BaseException:
            if not (any(folder.iterdir()) if cache else is_resumable(folder)):
                remove(folder)
            raise
        if cache is None:
            remove(folder)


def _refuse_overlap(path: Path, other: Path | str) -> None:
    if isinstance(other, str) and not Path(other).expanduser().exists():
        return
    ours, theirs = path.resolve(), Path(other).expanduser().resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise UserError(f"{str(path)!r} and {str(other)!r} overlap; name an output apart from it.")


def _called(receipt: Path) -> str | None:
    """Return the command line that a receipt records."""
    record = _data_of_ours(receipt / "receipt.json").get("record")
    return record.get("call") if isinstance(record, dict) else None


def _is_ours(path: Path) -> bool:
    """Whether an earlier command wrote the file `path`, or the folder and all that is in it."""
    if not path.is_dir():
        return bool(_data_of_ours(path))
    names = {file.name for file in path.iterdir() if ".partial-" not in file.name}  # a kill leaves such
    return any(
        names <= {mark, *beside, *data.get("files", ())}
        for mark, beside in _WRITTEN.items()
        if (data := _data_of_ours(path / mark))
    )


def _data_of_ours(file: Path) -> dict[str, Any]:
    """Read a JSON file that names offsite; any other gives an empty dict."""
    if file.suffix != ".json" or not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        data = json.loads(text) if '"offsite' in text else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _quieten() -> None:
    """Keep remarks of the libraries, meant for their developers, off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")  # what other libraries ask
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # threads wait for work, but not for long: docs/LOG.md
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _expanded(word: str) -> str:
    """Expand the home folder in `--option=~/path`, which a shell leaves as it is."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals and value.startswith("~"):
        return f"{option}={Path(value).expanduser()}"
    return word


def _print_error(sentence: str, code: int) -> int:
    sys.stderr.write(f"offsite: {' '.join(sentence.split())}\n")
    return code


def _explained(app: typer.Typer, error: Exception) -> tuple[str, int]:
    """Return the sentence for an error, and the exit code."""
    if isinstance(error, UserError):
        return str(error), USER_ERROR
    if isinstance(error, typer.Abort):
        ended = isinstance(error.__cause__, EOFError)  # typer takes any EOFError for Ctrl-D
        return _of_bug(error.__cause__) if ended and error.__cause__ else ("Interrupted.", INTERRUPTED)
    if hasattr(error, "format_message"):  # click's and typer's own: a wrong option, a missing argument
        return _of_usage(app, error), USER_ERROR
    if lack := _lacking(error):
        return lack, USER_ERROR
    if isinstance(error, OSError):
        return _of_system(error), USER_ERROR
    whose = type(error).__module__.partition(".")[0]
    if whose in _TRACKERS:
        message = brief(error, 600)
        return (
            f"The tracker {whose} refuses ({message}); correct its settings, or leave --report-to out.",
            USER_ERROR,
        )
    return _of_bug(error)


def _lacking(error: Exception) -> str | None:
    """Return the sentence for a full disk or memory; None for another error."""
    disk, memory = _LACKS
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk
    if isinstance(error, MemoryError):
        return memory
    return next((lack for lack, message in _LACKS.items() if any(each in str(error) for each in message)), None)


def _of_system(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    where = f": {str(error.filename)!r}" if error.filename else ""
    if isinstance(error, FileNotFoundError) and _is_without_folder():
        return "The folder that you work in was removed; change to one that is there, as with `cd ~`."
    if isinstance(error, FileNotFoundError):
        return f"{error.strerror}{where}; check the path."
    return f"{error.strerror}{where}; check the path, its rights and the room on its disk."


def _is_without_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _of_usage(app: typer.Typer, error: Any) -> str:
    message = str(error.format_message()).rstrip(".") or "A command is missing"
    given: Any = getattr(error.__cause__, "errors", list)()  # pydantic's, which newer typers do not pass on
    if given:
        message += f", found {brief(given[0]['input'])!r}"
    name = getattr(getattr(error, "ctx", None), "info_name", None)
    word = message.split("'")[1] if message.startswith("No such command") else None
    if word is not None:
        names = [command.name or "" for command in app.registered_commands]
        return f"There is no command {word!r}; {did_you_mean(word, names)}"
    command = f"offsite {name}" if name and not name.endswith("offsite") else "offsite"
    return f"{message}; `{command} --help` shows how."


def _of_bug(error: BaseException) -> tuple[str, int]:
    if os.environ.get("OFFSITE_DEBUG"):
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {brief(error, 400)}"
    return (
        f"This is a bug in offsite ({what}); please report it with the output of `offsite doctor` and of the "
        "command run again under OFFSITE_DEBUG=1.",
        INTERNAL_ERROR,
    )
