"""What tune says of the rows before it starts: what is cut or left out, and what is learnt of the first few."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from offsite.bundles.emulator import Emulator
from offsite.cli import training_rows
from offsite.data.encoding import DATE, prepare
from offsite.data.examples import Example, Piece
from tests.cli.conftest import SHORT, command, refused, write_jsonl


def _tuned(world, here, rows, *words):
    data = write_jsonl(here / "d.jsonl", rows)
    ran = command("tune", world / "emulator", "--data", data, "-o", here / "ad", "--json", *SHORT, *words)
    assert ran.code == 0, ran
    return ran, json.loads((here / "ad-receipt" / "receipt.json").read_text())


PAIRS = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 40} w7"} for i in range(10, 18)]


def test_show_prints_rows_with_what_is_learnt_in_brackets(world, here):
    ran, receipt = _tuned(world, here, PAIRS, "--show", "2")
    assert "d.jsonl, line 1: w10 w11[[ w50 w7 </s>]]\n" in ran.err
    assert "d.jsonl, line 2: w11 w12[[ w51 w7 </s>]]\n" in ran.err
    assert "d.jsonl, line 3" not in ran.err
    first = {
        "where": "d.jsonl, line 1",
        "pieces": [{"text": "w10 w11", "learnt": False}, {"text": " w50 w7 </s>", "learnt": True}],
    }
    assert ran.json["rows"]["first"][0] == first
    assert len(ran.json["rows"]["first"]) == 2
    assert receipt["rows"]["first"] == [first]
    assert receipt["rows"]["trained"] == len(PAIRS)


def test_without_show_no_row_is_printed_and_the_receipt_has_the_first(world, here):
    ran, receipt = _tuned(world, here, PAIRS)
    assert "[[" not in ran.err
    assert ran.json["rows"]["first"] == []
    assert len(receipt["rows"]["first"]) == 1


def test_on_a_terminal_what_is_learnt_has_a_style_and_no_row_commands_it(tokenizer, monkeypatch):
    screen = io.StringIO()
    terminal = Console(
        file=screen, force_terminal=True, color_system="standard", soft_wrap=True, highlight=False
    )
    monkeypatch.setattr(training_rows, "Console", lambda **_: terminal)
    monkeypatch.setattr(training_rows, "as_text", lambda *_: [("w5 \x1b[2J[bold]", False), (" w6", True)])
    rows = [Example((Piece("w5", False), Piece(" w6", True)), where="a.jsonl, line 1")]
    training_rows.show(prepare(rows, tokenizer, 20), tokenizer, 1)
    assert "\x1b[1;32m w6" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert "\\x1b[2J[bold]" in screen.getvalue()


def test_what_is_cut_is_said_before_it_starts_and_how_to_keep_it(world, here):
    rows = [*PAIRS, {"prompt": "w5 " * 40 + "w6", "completion": " w9"}]
    ran, receipt = _tuned(world, here, rows, "--max-length", "32")
    said = "Warning: 11 tokens at the beginning of 1 row will be cut, for a row has 32 tokens at the most; "
    assert said + "--max-length 43 keeps them." in ran.err
    assert ran.err.index(said) < ran.err.index("nats a token")
    assert receipt["rows"]["cut"] == {"rows": 1, "tokens": 11, "longest": 43}
    assert ran.json["rows"]["cut"] == receipt["rows"]["cut"]


def test_what_the_emulator_cannot_read_is_to_be_split(world, here):
    longest = Emulator.load(world / "emulator").model.config.max_position_embeddings
    rows = [*PAIRS, {"prompt": "w5 " * 2 * longest + "w6", "completion": " w9"}]
    ran, _ = _tuned(world, here, rows)
    assert f"the emulator reads {longest} tokens, so split those rows to keep them." in ran.err


def test_rows_that_teach_nothing_are_said(tokenizer, capsys):
    blank = Example((Piece("w5", False), Piece("  ", True)), closed=False, where="a.jsonl, line 2")
    found = prepare([Example((Piece("w5 w6", True),)), blank], tokenizer, 20)
    training_rows.warn(found, 128)
    said = "Warning: 1 row would teach nothing and will be left out, the first at a.jsonl, line 2.\n"
    assert capsys.readouterr().err == said
    assert training_rows.as_data(found, tokenizer)["untaught"] == {"rows": 1, "first": "a.jsonl, line 2"}


def test_texts_longer_than_a_row_are_split_and_no_token_is_lost(world, here):
    ran, receipt = _tuned(world, here, [{"text": "w5 w6 " * 50}] * 2, "--max-length", "30")
    assert "will be cut" not in ran.err
    assert receipt["rows"]["cut"]["rows"] == 0
    assert receipt["rows"]["trained"] == 8  # 101 tokens in four blocks each


@pytest.mark.parametrize("date", [None, "1999-12-31"])
def test_the_date_that_templates_print_is_recorded(world, here, date):
    words = ("--date", date) if date else ()
    _, receipt = _tuned(world, here, PAIRS, *words)
    assert receipt["config"]["date"] == (date or DATE)


def test_a_date_that_is_none_is_refused(world, here):
    data = write_jsonl(here / "d.jsonl", PAIRS)
    line = ("tune", world / "emulator", "--data", data, "-o", here / "ad", "--date", "31.12.1999")
    assert "date must be a day such as 2025-01-01, not '31.12.1999'" in refused(here, *line)


def test_what_it_will_do_is_said_before_and_every_setting_is_in_the_receipt(world, here):
    own = write_jsonl(here / "own.jsonl", PAIRS[:5])
    words = ["--eval-data", own, "--accumulate", "2", "--gradient-checkpointing", "--weight-decay", "0.01"]
    ran, receipt = _tuned(world, here, PAIRS, *words, "--lora-rank", "2", "--lora-alpha", "8")
    assert "  8 rows to tune on, each about 4 times, and 5 held out; 4 steps of 8, about " in ran.err
    assert ran.json["plan"] == receipt["plan"]
    asked = {"accumulate": 2, "gradient_checkpointing": True, "weight_decay": 0.01, "lora_alpha": 8, "steps": 4}
    assert {name: receipt["config"][name] for name in asked} == asked
    assert receipt["eval_data"] == str(own)
    assert receipt["learning_rate"]["how"] == "width"
    assert receipt["config"]["lr"] == receipt["learning_rate"]["lr"]
    alone = ("tune", world / "emulator", "--data", own, "-o", here / "other", "--lora-alpha", "8")
    assert "add --lora-rank" in refused(here, *alone)
