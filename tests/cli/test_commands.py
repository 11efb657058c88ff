"""Each command, done right: what it prints, what it writes, and that it is what it says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as t

from offsite.adapter import Adapter, swap
from offsite.emulator import Emulator
from offsite.models import load
from offsite.owner.plug import plug
from tests.cli.conftest import SHORT, command, listing
from tests.test_laws import logits, same


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def opened(folder):
    return t.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ([], 0.75),
        (["--keep", "0.5", "--bottom", "1", "--top", "3"], 0.5),
        (["--method", "crash", "--keep", "0.5", "--text", "text.txt"], 0.5),
        (["--keep", "0.5", "--distill", "2", "--text", "text.txt"], 0.5),
    ],
    ids=["uniform", "split", "crash", "distill"],
)
def test_compress(world, here, monkeypatch, more, kept):
    monkeypatch.chdir(world)
    said = command("compress", "model", "-o", here / "em", "--json", *more).json
    assert names(here) == ["em", "em-receipt", "thesis"]
    emulator = Emulator.load(here / "em")
    receipt = json.loads((here / "em-receipt" / "receipt.json").read_text())
    assert said["keep"] == receipt["keep"]["kept"] == kept
    assert said["digest"] == receipt["emulator"] == emulator.digest
    assert said["method"] == emulator.method == ("crash" if "crash" in more else "uniform")
    assert (said["emulator"], said["receipt"]) == (str(here / "em"), str(here / "em-receipt"))
    assert str(world) not in "".join(path.read_text(errors="replace") for path in (here / "em").iterdir())


def test_distilling_changes_the_middle_and_nothing_else(world, here):
    command("compress", world / "model", "-o", here / "em", "--keep", "0.5", "--distill", "2",
            "--text", world / "text.txt")  # fmt: skip
    plain, aligned = (Emulator.load(folder) for folder in (world / "emulator", here / "em"))
    changed = {
        name for name, tensor in plain.model.state_dict().items()
        if not torch.equal(tensor, aligned.model.state_dict()[name])
    }  # fmt: skip
    assert changed
    assert {name.split(".")[2] for name in changed} == {"2", "3"}
    assert aligned.origin == plain.origin


def test_a_receipt_goes_where_it_is_asked_to(world, here):
    command("compress", world / "model", "-o", here / "em", "--receipt", here / "safe" / "receipt")
    assert names(here) == ["em", "safe", "thesis"]
    assert names(here / "safe" / "receipt") == ["receipt.json"]


@pytest.mark.parametrize(
    ("name", "kind", "plain"),
    [("emulator", "emulator", True), ("crash", "emulator", False), ("adapter", "adapter", None)],
)
def test_inspect(world, name, kind, plain):
    said = command("inspect", world / name, "--json").json
    assert (said["kind"], said.get("plain")) == (kind, plain)
    assert said["bytes"] == {path.name: path.stat().st_size for path in (world / name).iterdir()}
    assert said["layers"] == {"bottom": 2, "top": 2} | (
        {"middle": 4 if name == "crash" else 2} if kind == "emulator" else {}
    )
    assert said["reveals"]
    human = command("inspect", world / name)
    assert human.code == 0
    assert said["digest"] in human.out
    assert f"is a sound {kind}" in human.out


def test_what_a_hostile_word_says_is_printed_as_it_is(world, here):
    """No markup of the printer's: brackets in a name neither vanish nor fail."""
    strange = shutil.copytree(world / "emulator", here / "[bold]em[/nothing]")
    ran = command("inspect", strange)
    assert (ran.code, ran.err) == (0, "")
    assert str(strange) in ran.out


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_tune(world, here, rank):
    more = ["--lora-rank", rank] if rank else []
    said = command("tune", world / "emulator", "--data", world / "data.jsonl", "-o", here / "ad", "--json",
                   *SHORT, *more).json  # fmt: skip
    assert names(here) == ["ad", "ad-receipt", "thesis"]
    adapter = Adapter.load(here / "ad")
    assert said["digest"] == adapter.digest
    assert adapter.emulator == Emulator.load(world / "emulator").digest
    assert (adapter.lora and adapter.lora.rank) == rank
    receipt = json.loads((here / "ad-receipt" / "receipt.json").read_text())
    assert receipt["adapter"] == adapter.digest
    assert receipt["config"]["steps"] == 4
    assert said["loss"]["first"] == receipt["curve"][0]["loss"]
    assert said["heldout"]["best"] <= said["heldout"]["first"]
    assert str(world) not in (here / "ad" / "card.json").read_text()


def test_tune_on_questions_of_ones_own(world, here):
    said = command(
        "tune", world / "emulator", "--data", world / "questions.jsonl", "-o", here / "ad", "--json", *SHORT
    )
    assert said.json["heldout"] is None  # six rows are too few to set any aside


@pytest.mark.parametrize("name", ["adapter", "lora"])
def test_plug(world, here, tokens, name):
    said = command("plug", world / "model", world / name, "-o", here / "tuned", "--json").json
    assert said == {"model": str(here / "tuned"), "adapter": Adapter.load(world / name).digest}
    assert names(here) == ["thesis", "tuned"]
    model = opened(world / "model")
    before = logits(model, tokens)
    plug(model, Adapter.load(world / name))
    assert torch.equal(logits(opened(here / "tuned"), tokens), logits(model, tokens))
    assert not torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("name", ["emulator", "crash"])
def test_export(world, here, tokens, name):
    said = command("export", world / name, "-o", here / "dense", "--json").json
    assert said == {"model": str(here / "dense")}
    assert torch.equal(
        logits(opened(here / "dense"), tokens), logits(Emulator.load(world / name).model, tokens)
    )
    assert load(str(here / "dense"))[1]("w7").input_ids == [7]


class TestEvaluate:
    def scores(self, world, *words):
        said = command("evaluate", *words, "--tasks", world / "questions.jsonl", "--exact", "--json").json
        assert said["scores"]["questions"]["n"] == 6
        assert said["sources"] == {"questions": "file: questions.jsonl"}
        return said["scores"]["questions"]

    def test_a_model_with_an_adapter_is_the_tuned_model(self, world, here):
        command("plug", world / "model", world / "adapter", "-o", here / "tuned")
        tuned = self.scores(world, here / "tuned")
        assert self.scores(world, world / "model", "--adapter", world / "adapter") == tuned
        assert self.scores(world, world / "model") != tuned

    def test_an_emulator_without_and_with_an_adapter(self, world):
        bare = self.scores(world, world / "emulator")
        assert self.scores(world, world / "emulator", "--adapter", world / "adapter")["nll"] < bare["nll"]
        assert self.scores(world, world / "emulator", "--adapter", world / "lora") != bare

    def test_scores_are_written_and_replaced_only_if_asked(self, world, here):
        call = [
            "evaluate",
            world / "model",
            "--tasks",
            world / "questions.jsonl",
            "-o",
            here / "s.json",
            "--limit",
            2,
        ]
        said = command(*call, "--json").json
        assert said == json.loads((here / "s.json").read_text())
        assert said["scores"]["questions"]["n"] == 2
        assert command(*call).code == 2
        table = command(*call, "--force")
        assert table.code == 0
        assert "questions" in table.out
        assert names(here) == ["s.json", "thesis"]


CELLS = {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "nll", "nll_stderr", "n"}
ROWS = ["zero_shot", "fine_tuned", "emulator_zero_shot", "emulator_tuned", "plugged_in"]
KEYS = {
    "rows", "keep", "seconds", "call", "versions", "seed",  # those that are promised
    "method", "split", "tuning", "limit", "sources", "notes", "curves", "model", "train", "date", "machine",
}  # fmt: skip


def test_compare(world, here):
    call = ["compare", world / "model", world / "emulator", "--tasks", world / "questions.jsonl", "--train",
            world / "data.jsonl", "--steps", 2, "-o", here / "comparison"]  # fmt: skip
    said = command(*call, "--json").json
    assert names(here) == ["comparison", "thesis"]
    assert names(here / "comparison") == ["report.html", "results.json"]
    written = json.loads((here / "comparison" / "results.json").read_text())
    assert written == said
    assert written.keys() == KEYS
    assert list(written["rows"]) == ROWS
    assert all(
        row.keys() == {"questions"} and row["questions"].keys() == CELLS for row in written["rows"].values()
    )
    assert written["keep"] == 0.5
    rows = {name: row["questions"] for name, row in written["rows"].items()}
    assert rows["zero_shot"] != rows["plugged_in"] != rows["emulator_tuned"]
    before = listing(here)
    assert command(*call).code == 2
    assert listing(here) == before


def test_doctor(world):
    said = command("doctor", "--json").json
    assert {"versions", "machine", "processor", "cached", "missing"} == said.keys()
    assert {"python", "torch", "transformers"} <= said["versions"].keys()
    human = command("doctor")
    assert human.code == 0
    assert said["versions"]["torch"] in human.out


def test_the_same_road_through_python(world, tokens):
    """What the commands made is what the library makes."""
    model, _ = load(str(world / "model"))
    emulator = Emulator.load(world / "emulator")
    before = {name: tensor.clone() for name, tensor in emulator.model.state_dict().items()}
    displaced = swap(emulator.model, Adapter.load(world / "lora"))
    assert not same(before, dict(emulator.model.state_dict()))
    swap(emulator.model, displaced)
    assert same(before, dict(emulator.model.state_dict()))
    assert not torch.equal(logits(model, tokens), logits(emulator.model, tokens))
