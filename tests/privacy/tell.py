"""A program: every command in one story, in a world whose paths, names and texts are marked, and watched.

`python -m tests.privacy.tell HOME` writes HOME/../told.json. What a machine says of its user is to be marked in
the environment that it is started with.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

from offsite.untrusted import worker

MARKS = {
    "a folder above everything": "vault-of-Zoë 7q",
    "the user's name": "quillfeather",
    "the host's name": "brimstone-31",
    "a row of the private data": "cinnabar pangolin",
    "the calibration's text": "obsidian heron",
    "the environment": "hunter2-marzipan",
    "what a library left behind": "previous-life-of-Ænid",
}
"""What no bundle may hold, by what it is."""
_SHORT = ["--steps", "4", "--batch-size", "4", "--max-length", "32"]
_LEARN = ["--text", "text.txt"]
_SMALL = ["--blocks", "16", "--length", "16"]
_ASKED = ["--tasks", "questions.jsonl", "--limit", "2", "--train", "data.jsonl", "--steps", "2"]
EMULATORS = {  # by their folders: how each is made
    "uniform": ["--method", "uniform", "--keep", "0.5", "--receipt", "notes"],  # not beside it, for the page
    "crash": ["--profile", "crash-profile", "--keep", "0.5"],
    "svd": ["--method", "svd"],
    "src": ["--method", "src", "--set", "norm=plain", "--beta", "0.5", *_LEARN],
    "scaleot": ["--profile", "scaleot-profile", "--alpha", "0.5"],
    "chain": ["--profile", "scaleot-profile", "--method", "scaleot+svd", "--keep", "0.6"],
    "distilled": ["--method", "uniform", "--keep", "0.25", "--distill", "2", *_LEARN],
}
SENT = [*EMULATORS, "lora", "dense", "demo/emulator", "demo/adapter", "demo/tuned-model", "frontier/emulator"]
"""Folders for the other side, or for everyone: bundles, and plain checkpoints."""
SHOWN = ["uniform.html", "owner.pub", "study/table.md", "study/table.tex"]
"""Files for others: a page about a bundle without its receipt, a public key, a paper's tables."""
KEPT = [
    "notes", *(f"{name}-receipt" for name in [*EMULATORS, "lora"] if name != "uniform"),
    *(f"demo/{name}-receipt" for name in ("emulator", "adapter", "tuned-model")),
    "demo/scores.json", "demo/comparison/results.json", "demo/comparison/report.html", "demo/report.html",
    "study/results.json", "study/report.html", "frontier",
]  # fmt: skip
"""What stays with the one who made it, and tells how that came about."""
SILENT = ["owner.key", "crash-profile", "scaleot-profile", "demo/profile", "demo/demo.json", "fetched"]
"""What stays as well, but has no words of its maker's."""
INPUTS = ["cache", "model", "data.jsonl", "questions.jsonl", "text.txt", "recipe.yaml"]


def lines(home):
    """Every command line of the story; the demo runs eight commands more."""
    model, key = home / "model", home / "owner"
    yield ["demo", "--quick", "-o", home / "demo"]
    yield ["fetch", "smollm2-135m", "-o", "fetched"]
    learn = ["profile", model, *_LEARN, *_SMALL, "--method"]
    quick = ["steps=2", "rank=4", "batch_size=2", "norm=plain"]
    yield [*learn, "scaleot", "-o", "scaleot-profile", *(word for each in quick for word in ("--set", each))]
    yield [*learn, "crash", "-o", "crash-profile"]
    for name, how in EMULATORS.items():
        yield ["compress", model, "-o", name, *how]
    yield ["tune", "scaleot", "--data", home / "data.jsonl", "-o", "lora", *_SHORT, "--lora-rank", "2"]
    yield ["keygen", "-o", key]
    for name in ("demo/emulator", "demo/adapter"):
        yield ["sign", name, "--key", f"{key}.key"]
        yield ["verify", name, "--key", f"{key}.pub"]
    for name in ("crash", "scaleot", "demo/emulator", "demo/adapter", "lora"):
        yield ["inspect", name, "--json"]
    yield ["inspect", "demo/emulator", "--against", model, *_LEARN, "--blocks", "2", "--length", "16"]
    yield ["export", "demo/emulator", "-o", "dense"]
    yield ["evaluate", "uniform", "--tasks", "questions.jsonl", "--limit", "2"]
    yield ["compare", home / "recipe.yaml", "-o", "study"]
    yield ["frontier", model, *_ASKED, "--method", "uniform", "--keeps", "0.5", "--min-gap", "-100", *_LEARN,
           "--blocks", "2", "--length", "16", "-o", "frontier"]  # fmt: skip
    yield ["report", "uniform", "-o", "uniform.html"]
    yield ["doctor", "--json"]
    yield ["methods", "--json"]


_OUTWARDS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo",
             "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request")  # fmt: skip
_STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
_INSIDE = (socket.AF_UNIX, getattr(socket, "AF_NETLINK", None))
_LOOPBACK = ("::1", "127.0.0.1")
_watches: list[list[str]] = []


def _hook(event, args):
    """What Python itself asks before it opens a connection, whichever library wants one."""
    if not _watches or event not in (*_OUTWARDS, *_STARTED):
        return
    if event.startswith("socket.") and getattr(args[0], "family", None) in _INSIDE:
        return
    if event == "subprocess.Popen" and list(args[1][:4]) == [sys.executable, "-I", "-S", worker.__file__]:
        return  # Python itself, which reads what is untrusted within limits
    if event == "socket.bind" and args[1][0] in _LOOPBACK:  # urllib3, imported, asks so whether there is IPv6
        return
    _watches[-1].append(f"{event} {args[1:] if event in _OUTWARDS else args[:2]}")
    if event in _OUTWARDS:
        raise PermissionError(f"a command reached outwards: {event}")


@contextmanager
def watched():
    """Every attempt, within, to reach another machine or to start another program; the former fail."""
    if _hook not in _hooked:
        _hooked.append(_hook)
        sys.addaudithook(_hook)  # for good: hooks cannot be taken away
    _watches.append([])
    try:
        yield _watches[-1]
    finally:
        _watches.pop()


_hooked = []


def write(home):
    """The model, private data and public text; the same model and text under the names that need no network."""
    from offsite.data.tasks import cache as shelf
    from offsite.data.tasks import definition
    from tests.cli.conftest import write_jsonl
    from tests.families import tiny_model, tiny_tokenizer

    row, calibration = MARKS["a row of the private data"], MARKS["the calibration's text"]
    for folder in (home / "model", home / "cache/models/smollm2-135m"):
        tiny_model("llama").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        _leave_traces(folder)
    text = " ".join(f"w{3 + i * i % 120}" + f" {calibration}" * (i % 50 == 0) for i in range(40_000))
    (home / "text.txt").write_text(text)
    answers = [{"prompt": f"w{10 + i} {row}", "completion": f" w{40 + i} {row}"} for i in range(24)]
    write_jsonl(home / "data.jsonl", answers)
    questions = [
        {"prompt": f"w{10 + i} {row}", "choices": [f"w{20 + i}", f"w{30 + i} w5"], "answer": i % 2}
        for i in range(6)
    ]
    write_jsonl(home / "questions.jsonl", questions)
    shelf.put(definition.texts()["wikipedia"], "train", "wheel: here", "", [{"text": text}])
    for split in ("train", "test"):
        for name in definition.mixtures()["mixture"].turns:
            if task := definition.questions().get(name):
                shelf.put(task, split, "wheel: here", "", questions * 4)
    study = {"model": str(home / "model"), "methods": ["uniform"], "keeps": 0.5, "steps": 2, "limit": 2}
    study |= {"tasks": "questions.jsonl", "train": "data.jsonl", "text": "text.txt"}
    (home / "recipe.yaml").write_text(json.dumps(study))  # which is YAML too


def _leave_traces(folder):
    """Paths as trainers and hubs leave them behind in a model's files."""
    mark = MARKS["what a library left behind"]
    trace = f"/mnt/{mark}/run-7/model"
    nested = {
        "nested": {"init_from": trace}, "runs": [[{"dir": trace}, {"dirs": [trace]}]], "made_of": {trace: 1},
        "note": f"merged from {trace}", "parent": f"../{mark}/run", "copied": f"zoe@host:/{mark}/run",
    }  # fmt: skip
    for name, keys in {
        "config.json": ("_name_or_path", "name_or_path", "base_model_path", "train_dir"),
        "generation_config.json": ("_name_or_path", "base_model_path"),
        "tokenizer_config.json": (
            "name_or_path",
            "tokenizer_file",
            "special_tokens_map_file",
            "vocab_file",
            "cache_dir",
        ),
    }.items():
        file = folder / name
        data = json.loads(file.read_text())
        file.write_text(json.dumps(data | dict.fromkeys(keys, trace) | nested))


def main(home):
    """Write the world into the folder `home`, and run all lines there."""
    import transformers

    from offsite.provenance import calling
    from tests.cli.conftest import command

    transformers.logging.disable_progress_bar()
    socket.gethostname = platform.node = lambda: MARKS["the host's name"]
    home.mkdir(parents=True)
    os.chdir(home)
    write(home)
    told = []
    for words in lines(home):
        line = [str(word) for word in words]
        with watched() as tried, calling(["offsite", *line]):
            ran = command(*line)
        assert ran.code == 0, (line, ran.err)
        told.append({"line": line, "tried": tried, "said": ran.out if "--json" in line else ""})
    (home.parent / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
