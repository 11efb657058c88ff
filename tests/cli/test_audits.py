"""What tune, inspect and plug tell of an audit, where it goes, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.conftest import SHORT, command, refused, spoken
from tests.cli.test_commands import names
from tests.sample_bundles import edit_tensors

UP = "top.1.mlp.up_proj.weight"


@pytest.fixture
def spiked(world, here):
    """The adapter of the world with one tensor that moved far."""
    folder = shutil.copytree(world / "adapter", here / "spiked")
    edit_tensors(folder, lambda tensors: tensors[UP].add_(2.0))
    return folder


def test_tune_shows_the_emulator_before_and_keeps_it_private(world, here):
    data = world / "data.jsonl"
    ran = command("tune", world / "emulator", "--data", data, "-o", here / "ad", "--json", *SHORT)
    told = ran.json["audit"]
    assert told["start"]["examples"] == 24
    assert told["parameters"]["trainable"] > told["parameters"]["middle"] > 0
    assert told["warnings"] == [] == spoken(ran.err)
    assert f"loss         {told['start']['loss']:.2f} nats" in ran.err
    receipt = json.loads((here / "ad-receipt" / "receipt.json").read_text())
    assert receipt["audit"] == told
    assert "audit" not in (here / "ad" / "card.json").read_text()


def test_inspect_shows_the_same_without_tuning(world, here):
    words = ("--data", world / "data.jsonl", "--json")
    told = command("inspect", world / "emulator", *words).json["audit"]
    tuned = command("tune", world / "emulator", *words, "-o", here / "ad", *SHORT).json["audit"]
    for control in told["start"]:
        assert told["start"][control] == pytest.approx(tuned["start"][control])
    assert "--data judges an emulator" in refused(here, "inspect", world / "adapter", *words)


def test_plug_takes_the_loss_on_a_text_before_and_after(world, here):
    line = (
        "plug",
        world / "model",
        world / "adapter",
        "-o",
        here / "tuned",
        "--text",
        world / "text.txt",
        "--json",
    )
    ran = command(*line)
    loss = ran.json["audit"]["loss"]
    assert loss["before"] != loss["after"]
    assert f"{loss['before']:.2f} nats a token before, {loss['after']:.2f} plugged in" in ran.err


def test_plug_says_where_no_public_text_is_at_hand(world, here):
    ran = command("plug", world / "model", world / "adapter", "-o", here / "tuned")
    assert "not measured, for wikipedia is not in the cache; --text" in ran.err
    assert "of its size" in ran.err


def test_what_moved_past_the_limit_is_refused_and_nothing_written(world, here, spiked):
    line = ("plug", world / "model", spiked, "-o", here / "tuned")
    said = refused(here, *line, "--max-shift", "0.5")
    assert f"'{UP}' moved by" in said
    assert "at most 0.5 is allowed" in said
    warned = command(*line)
    assert warned.code == 0
    assert any(line.startswith(f"Warning: The adapter's {UP} moved by") for line in spoken(warned.err))
    within = ("plug", world / "model", world / "adapter", "-o", here / "within", "--max-shift", "0.5")
    assert command(*within).code == 0


def test_adapters_of_ones_own_give_the_bounds(world, here, spiked):
    def told(adapter, out):
        line = ("plug", world / "model", adapter, "-o", here / out, "--json")
        return command(*line, "--expect", world / "adapter", "--expect", world / "lora").json["audit"]

    alike, far = told(world / "adapter", "a"), told(spiked, "b")
    assert not any("twice as far" in warning for warning in alike["warnings"])
    assert all(one["shift"] <= one["bound"] for one in alike["moved"])
    assert [one["tensor"] for one in far["moved"] if one["shift"] > one["bound"]] == [UP]
    assert any(UP in warning and "twice as far" in warning for warning in far["warnings"])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--expect", "nowhere"], "There is no 'nowhere'"),
        (["--text", "wikipdia"], "did you mean 'wikipedia'"),
        (["--max-shift", "-1"], "max-shift"),
    ],
)
def test_wrong_words_are_refused(world, here, more, why):
    assert why in refused(here, "plug", world / "model", world / "adapter", "-o", here / "tuned", *more)


def test_the_audits_of_a_checkpoint_are_not_in_it(world, here):
    assert command("plug", world / "model", world / "adapter", "-o", here / "tuned").code == 0
    assert "shift" not in (here / "tuned" / "offsite.json").read_text()
    assert names(here / "tuned-receipt") == ["receipt.json"]
