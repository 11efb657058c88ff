"""The benchmarks that README and docs name run as they stand, on a tiny model; figures are not judged."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from offsite.model.split import Split
from offsite.owner.methods import method_named
from offsite.owner.methods.scaleot import ScaleOT
from tests.families import tiny_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(tmp_path, tokenizer, monkeypatch):
    """Run one as a script, in a folder with a tiny model, questions and text."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"w{10 + i}", "choices": [f"w{20 + i}", "w5"], "answer": i % 2} for i in range(6)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text(" ".join(f"w{3 + i * i % 120}" for i in range(40_000)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)

    def once(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(FOLDER / name), run_name="__main__")

    return once


def test_importance_tells_trainings_and_orders_apart(run, capsys):
    tokens = torch.randint(3, 120, (32, 16), generator=torch.Generator().manual_seed(0))
    for seed in ("0", "1"):
        method = ScaleOT(steps=2, batch_size=4, rank=4, seed=int(seed))
        method.profile(tiny_model("llama"), Split(), tokens).save(seed)
    run("importance.py", "model", "0", "1", "--text", "text.txt", "--blocks", "4", "--length", "16")
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.startswith("Rank correlations")]) == 2
    assert [line.split(" | ")[0] for line in said[4::2]] == [
        "| learnt", "| each layer alone (the start)", "| block influence", "| gradient norm",
    ]  # fmt: skip


def test_harmonizing_trains_each_variant_once(run, capsys):
    words = ["--steps", "2", "--text", "text.txt", "--blocks", "40", "--length", "16", "-o", "out.json"]
    run("harmonizing.py", "model", "rank=4", "rank=4,text=2", *words)
    run("harmonizing.py", "model", "rank=4", "rank=4,order=influence", *words)
    rows = json.loads(Path("out.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["rank=4", "rank=4,text=2", "rank=4,order=influence"]
    assert max(rows[2]["scores"]) == 4.0, "ranks, never learnt"
    assert capsys.readouterr().out.count("| rank=4") == 3


def test_fidelity_writes_points_and_a_figure(run):
    words = ["--text", "text.txt", "--blocks", "2", "--length", "16", "-o", "out.json", "--figure", "out.svg"]
    run("fidelity.py", "model", "--methods", "svd", "uniform", "--keeps", "0.5", "0.75", *words)
    points = json.loads(Path("out.json").read_text())["points"]
    assert [(each["method"], each["asked"]) for each in points] == [
        ("svd", 0.5), ("svd", 0.75), ("uniform", 0.5), ("uniform", 0.75),
    ]  # fmt: skip
    assert Path("out.svg").read_text().startswith("<svg")


def test_scorer_compares_every_task_asked_for(run, capsys):
    words = ["model", "--questions", "4", "--rounds", "1", "--batch-sizes", "2", "3"]
    run("scorer.py", *words, "--tasks", "asked.jsonl")
    said = capsys.readouterr().out
    assert "asked.jsonl: 4 questions, 8 answers, harness in batches of" in said
    assert float(said.split()[-1]) < 1e-4


TUNING = ["tuning.py", "model", "--data", "asked.jsonl", "--steps", "3", "--rounds", "1", "--batch-size", "2"]


def test_tuning_says_what_each_way_takes(run, capsys):
    run(*TUNING, "--heldout", "2")
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines()[::3]] == ["original", "original-bf16", "lora"]
    assert "the removed layers predict 1." in said


def test_tuning_learns_what_the_original_way_learns(run, capsys, monkeypatch):
    """In one precision, padding and positions without a label change nothing."""
    for module in ("offsite.training.loop", "offsite.model.precision"):
        monkeypatch.setattr(f"{module}.bf16_pays", lambda: False)
    run(*TUNING, "--heldout", "2", "--against", "original")
    said = capsys.readouterr().out
    assert "curves apart by 0.000 at most" in said
    ours, theirs = said.split("held out ")[1].split(" against ")
    assert float(ours) == pytest.approx(float(theirs), abs=1e-3)


@pytest.mark.parametrize("method", ["gradot", "gradot-paper"])
def test_profiling_times_the_pass_and_the_parts(run, capsys, method):
    words = ["--text", "text.txt", "--blocks", "4", "--length", "16", "--repeats", "1", "--json", "out.json"]
    run("profiling.py", "model", "--method", method, *words)
    found = json.loads(Path("out.json").read_text())
    [took] = found["rounds"]
    assert took["ratio"] == took["profile"] / (took["bare"] + took["factorisations"])
    assert found["passes"] >= 1
    assert "peak_gib" in capsys.readouterr().out


def test_middle_times_a_step_for_each_keep(run):
    tokens = torch.randint(3, 120, (8, 16), generator=torch.Generator().manual_seed(0))
    method_named("gradot").profile(tiny_model("llama"), Split(), tokens).save("profile")
    words = ["--keeps", "1.0", "0.5", "--data", "asked.jsonl", "--steps", "2", "--batch-size", "2"]
    run("middle.py", "model", "profile", *words, "--json", "out.json")
    points = json.loads(Path("out.json").read_text())
    assert [point["keep"] for point in points] == [1.0, 0.5]
    assert points[1]["parameters_ratio"] < points[0]["parameters_ratio"] == 1


def test_memory_measures_a_compression(run, capsys):
    run("memory.py", "model", "0.7")
    figures = json.loads(capsys.readouterr().out)
    assert figures["emulator_mb"] > 0
    assert figures["keep"] == 0.7


def test_tokenizing_times_rows_here_and_in_the_worker(run, capsys):
    run("tokenizing.py", "model", "--text", "text.txt", "--rows", "50", "--words", "5", "--rounds", "1")
    start, ids, offsets, rows = capsys.readouterr().out.splitlines()
    assert start.startswith("start of the worker: ")
    assert ids.startswith("token_ids: 50 rows, here ")
    assert offsets.startswith("encode_batch: 50 rows, here ")
    assert rows.startswith("training_rows: 50 rows, here ")


def test_every_benchmark_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert {file.name for file in FOLDER.glob("*.py")} == set(re.findall(r'"(\w+\.py)"', text))
