"""Each command, done right: what it prints, what it writes, and that it is what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
import torch
import transformers as t

from offsite.bundles.adapter import Adapter, swap
from offsite.bundles.emulator import Emulator
from offsite.model.loading import load
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.plug import plug
from offsite.results.measures import CHOICE, loss_of, rows_of
from tests.cli.conftest import SHORT, command, listing, refused
from tests.cli.test_bad_input import asked
from tests.test_laws import SPLIT, logits, same, thin


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def opened(folder):
    return t.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        (["--method", "uniform"], 0.75),
        (["--method", "uniform", "--keep", "0.5", "--bottom", "1", "--top", "3"], 0.5),
        (["--method", "crash", "--keep", "0.5", "--text", "text.txt"], 0.5),
        (["--method", "uniform", "--keep", "0.5", "--distill", "2", "--text", "text.txt"], 0.5),
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


def test_the_default_method_goes_the_whole_road(world, here, tokens):
    """GradOT, profiled on the way or beforehand, to a thin middle; tuned, plugged in, exported."""
    text, emulator, keep = ("--text", world / "text.txt"), here / "em", ("--keep", "0.5")
    told = command("compress", world / "model", "-o", emulator, *keep, *text, "--json").json
    assert told["method"] == "gradot"
    assert abs(told["keep"] - 0.5) < 0.02
    receipt = json.loads((here / "em-receipt" / "receipt.json").read_text())
    assert [place["layer"] for place in receipt["blueprint"]] == [2, 3, 4, 5]
    assert command("profile", world / "model", "-o", here / "pro", *text).code == 0
    again = ("compress", world / "model", "--profile", here / "pro", "-o", here / "em-2", *keep, "--json")
    assert command(*again).json["digest"] == told["digest"]
    data = ("--data", world / "data.jsonl")
    assert command("tune", emulator, *data, "-o", here / "ad", *SHORT).code == 0
    assert command("plug", world / "model", here / "ad", "-o", here / "tuned").code == 0
    assert not torch.equal(logits(opened(here / "tuned"), tokens), logits(opened(world / "model"), tokens))
    assert command("export", emulator, "-o", here / "dense").code == 0
    thin_one = Emulator.load(emulator).model
    assert torch.allclose(logits(opened(here / "dense"), tokens), logits(thin_one, tokens), atol=1e-4)


def test_distilling_changes_the_middle_and_nothing_else(world, here):
    command("compress", world / "model", "-o", here / "em", "--method", "uniform", "--keep", "0.5",
            "--distill", "2", "--text", world / "text.txt")  # fmt: skip
    plain, aligned = (Emulator.load(folder) for folder in (world / "emulator", here / "em"))
    changed = {
        name for name, tensor in plain.model.state_dict().items()
        if not torch.equal(tensor, aligned.model.state_dict()[name])
    }  # fmt: skip
    assert changed
    assert {name.split(".")[2] for name in changed} == {"2", "3"}
    assert aligned.origin == plain.origin


def test_a_budget_that_cannot_be_met_is_said(world, here):
    line = ("compress", world / "model", "-o", here / "em", "--method", "uniform", "--keep")
    said = command(*line, "0.1")
    assert said.err.endswith("10% were asked for; the nearest that uniform makes of this is 25.0%.\n")
    assert "were asked for" not in command(*line, "0.5", "--force").err


def test_two_profiles_of_one_method_are_refused(world, here):
    for name in ("a", "b"):
        assert command("profile", world / "model", "-o", here / name, "--method", "svd").code == 0
    both = ("--profile", here / "a", "--profile", here / "b")
    said = refused(here, "compress", world / "model", "-o", here / "em", *both)
    assert "Several profiles are of svd; give one for each method." in said


def test_a_receipt_goes_where_it_is_asked_to(world, here):
    command("compress", world / "model", "-o", here / "em", "--method", "uniform", "--receipt",
            here / "safe" / "receipt")  # fmt: skip
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


def revealed(told):
    return next(line for line in told["reveals"] if line.startswith("a middle"))


def test_inspect_says_what_the_middle_shows(world, here):
    """Nothing of layers that are merely dropped, who shares with whom, and of thinned ones how much is left."""
    dropped, shared = (command("inspect", world / name, "--json").json for name in ("emulator", "crash"))
    assert dropped["places"] == [{}, {}]
    assert revealed(dropped).endswith("layers stand there is not said")
    assert shared["places"] == [{}] * 4
    assert "those that share one layer are seen" in revealed(shared)
    model, tokenizer = load(str(world / "model"))
    build(model, SPLIT, thin(model), tokenizer=tokenizer).save(here / "thin")
    told = command("inspect", here / "thin", "--json").json
    ranks = {f"self_attn.{name}_proj": 3 for name in "qkvo"}
    assert told["places"] == [{"ranks": ranks, "channels": 4}] * 4
    assert revealed(told) == (
        "a middle of 4 places; each is one layer of the model, and what it kept is seen: the rank of each of "
        "16 factored matrices (3) and the number of feed-forward channels of 4 places (4)"
    )
    build(model, SPLIT, (Place(2), Place(2, (0, 1)), Place(3, (4, 5, 6))), tokenizer=tokenizer).save(
        here / "mix"
    )
    told = command("inspect", here / "mix", "--json").json
    assert told["places"] == [{}, {"channels": 2}, {"channels": 3}]
    assert "those that share one layer" in revealed(told)
    assert "channels of 2 places (2 to 3)" in revealed(told)


@pytest.mark.parametrize("name", ["emulator", "crash"])
def test_inspect_counts_what_is_stored(world, name):
    told = command("inspect", world / name, "--json").json["parameters"]
    whole = sum(p.numel() for p in opened(world / "model").model.layers[0].parameters())
    assert told["middle"] == 2 * whole  # crash shares two layers among four places
    assert told["adapter"] == 4 * whole
    assert told["all"] - told["adapter"] - told["middle"] == 128 * 32 + 32  # tied embeddings, last norm


class TestInspectAgainst:
    def test_it_is_the_fidelity_on_the_end_of_the_text(self, world):
        call = ["inspect", world / "emulator", "--against", world / "model", "--text", world / "text.txt",
                "--blocks", 5, "--length", 16]  # fmt: skip
        told = command(*call, "--json").json["fidelity"]
        model, tokenizer = load(str(world / "model"))
        tokens = held_out([(world / "text.txt").read_text()], tokenizer, 16, 5)
        found = fidelity(Emulator.load(world / "emulator"), model, tokens)
        assert told == asdict(found) | {
            "loss_gap": found.loss_gap, "keep": 0.5, "model": str(world / "model"),
            "text": str(world / "text.txt"), "blocks": 5, "length": 16,
        }  # fmt: skip
        human = command(*call)
        assert human.code == 0
        for said in ("50.0% of the parameters", f"{found.cosine:.3f} between",
                     f"{found.relative_error:.3f} relative error", f"{found.loss:.3f} nats",
                     f"{abs(found.loss_gap):.3f} ", "not to be sent"):  # fmt: skip
            assert said in human.out

    def test_without_it_nothing_is_the_owners(self, world):
        assert "fidelity" not in command("inspect", world / "emulator", "--json").json
        assert "not to be sent" not in command("inspect", world / "emulator").out

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("inspect A --against M", "adapter' is an adapter, where"),
            ("inspect M --against M", "model' is not a bundle"),
            ("inspect no/such --against M", "There is no 'no/such'"),
            ("inspect E --against no/such/model", "'no/such/model' is neither"),
            ("inspect E --against A", "adapter' holds a card.json, as bundles do"),
            ("inspect E --against X --text T", "made from another model"),
            ("inspect E --against M --text wikipedai", "did you mean 'wikipedia'?"),
            ("inspect E --against M --text T --blocks 9999", "where 9999 are wanted"),
            ("inspect E --against M --text T --blocks 0", "found '0'"),
            ("inspect E --against M --text T --length 1", "found '1'"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, world, here, line, why):
        words = [world / "other-model" if word == "X" else word for word in asked(line, world, here / "out")]
        assert why.lower() in refused(here, *words).lower()


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
    assert said["steps"] == {"asked": 4, "made": 4, "kept": 4}
    assert str(world) not in (here / "ad" / "card.json").read_text()


def test_tune_reports_to_a_tracker_and_refuses_one_that_is_not_there(world, here, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(here)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    line = ("tune", world / "emulator", "--data", world / "questions.jsonl", "-o", here / "ad", *SHORT)
    sentence = refused(here, *line, "--report-to", "tensorbord")
    assert sentence == "There is no tracker 'tensorbord' here; did you mean 'tensorboard'?"
    ran = command(*line, "--report-to", "tensorboard")
    assert (ran.code, names(here)) == (0, ["ad", "ad-receipt", "runs", "thesis"])
    assert b"train/loss" in b"".join(path.read_bytes() for path in here.glob("runs/*/offsite/events.out.*"))


def test_tune_on_questions_of_ones_own(world, here):
    said = command(
        "tune", world / "emulator", "--data", world / "questions.jsonl", "-o", here / "ad", "--json", *SHORT
    )
    assert said.json["heldout"] is None  # six rows are too few to set any aside


@pytest.mark.parametrize("name", ["adapter", "lora"])
def test_plug(world, here, tokens, name):
    said = command("plug", world / "model", world / name, "-o", here / "tuned", "--json").json
    audit = said.pop("audit")
    assert said == {
        "model": str(here / "tuned"),
        "receipt": str(here / "tuned-receipt"),
        "adapter": Adapter.load(world / name).digest,
        "recorded": False,
    }
    assert names(here) == ["thesis", "tuned", "tuned-receipt"]
    receipt = json.loads((here / "tuned-receipt" / "receipt.json").read_text())
    assert receipt["audit"] == audit
    assert (receipt["adapter"], audit["loss"]) == (said["adapter"], None)
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
        assert "…" not in table.out, "eighty columns are enough"
        assert names(here) == ["s.json", "thesis"]


CELLS = {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "nll", "nll_stderr", "n", "choices", "right"}
ROWS = ["zero_shot", "fine_tuned", "emulator_zero_shot", "emulator_tuned", "plugged_in"]
KEYS = {
    "rows", "keep", "seconds", "call", "versions", "seed",  # those that are promised
    "method", "split", "tuning", "limit", "sources", "notes", "curves", "model", "train", "date", "machine",
    "judged", "learning_rate",
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
    judged = written["judged"]["questions"]
    loss = loss_of(rows_of(written["rows"]), ["questions"], CHOICE)
    assert (judged["by"], judged["loss"]) == ("choice nll", asdict(loss))
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
