"""The five rows: what they are, that the model comes back, and that an interrupted one goes on."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace

import pytest
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing

from offsite.bundles.emulator import Emulator
from offsite.data.examples import Question
from offsite.data.tasks import Task
from offsite.data_owner.tune import TuneConfig
from offsite.errors import UserError
from offsite.experiments import compare as module
from offsite.experiments.cache import Cache
from offsite.experiments.compare import Bench, Experiment, compare
from offsite.model.precision import autocast
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.training.rate import Rate
from tests.families import tiny_model
from tests.test_laws import same, state

SPLIT = Split(2, 2)
QUESTIONS = tuple(
    Question(f"w{10 + i} w{40 + i}", (f"w{10 + i}", f"w{50 + i}", f"w{90 + i}"), 0) for i in range(24)
)
ASKED = Experiment(
    (Task("mine", QUESTIONS[:6]),),
    [q.example() for q in QUESTIONS],
    TuneConfig(steps=25, lr=1e-2, max_length=32),
)


@pytest.fixture
def saved(tmp_path, tokenizer):
    model = tiny_model("llama")
    build(model, SPLIT, (Place(2), Place(4)), tokenizer=tokenizer).save(tmp_path / "emulator")
    return model, tmp_path / "emulator"


def rows(results):
    return {name: row["mine"]["nll"] for name, row in results["rows"].items()}


def test_five_rows_and_the_model_as_it_was(saved, tmp_path):
    model, folder = saved
    before = state(model)
    results = compare(model, Emulator.load(folder), ASKED, tmp_path / "work")
    assert same(state(model), before)
    assert results["keep"] == pytest.approx(0.5)
    found = rows(results)
    assert list(found) == ["zero_shot", "fine_tuned", "emulator_zero_shot", "emulator_tuned", "plugged_in"]
    assert found["fine_tuned"] < found["zero_shot"]
    assert found["emulator_tuned"] < found["emulator_zero_shot"]
    assert len(set(found.values())) == 5


def test_it_says_how_it_was_scored_and_what_was_tuned_on_too(saved, tmp_path, tokenizer):
    bench = Bench(saved[0], tokenizer, SPLIT, Cache(tmp_path))
    others = Experiment((Task("mine", QUESTIONS[:6], note="A note."),), [q.example() for q in QUESTIONS[4:]])
    note, known, precision = bench.notes(others)
    assert note == "A note."
    assert known.startswith("Of the 6 questions of mine 2 are tuned on as well")
    with autocast(saved[0]) as words:
        assert precision == f"Scored in {words}."
    apart = Experiment((Task("mine", QUESTIONS[:4]),), [q.example() for q in QUESTIONS[4:]])
    assert bench.notes(apart) == [precision]


@pytest.mark.parametrize("change", ["merges", "bos"])
def test_another_way_to_make_tokens_is_another_model(saved, tmp_path, tokenizer, change):
    other = copy.deepcopy(tokenizer)
    if change == "bos":
        other.backend_tokenizer.post_processor = TemplateProcessing("<s> $0", special_tokens=[("<s>", 1)])
    else:
        other.backend_tokenizer.normalizer = Lowercase()
    assert other.get_vocab() == tokenizer.get_vocab()
    benches = [Bench(saved[0], each, SPLIT, Cache(tmp_path)) for each in (tokenizer, other)]
    assert benches[0].digest != benches[1].digest


@pytest.mark.parametrize(
    ("stage", "rank"),
    [(5, None), (7, 2), *(pytest.param(*each, marks=pytest.mark.long) for each in ((2, None), (4, 2)))],
)
def test_interrupted_at_any_stage_and_run_again_it_ends_the_same(saved, tmp_path, interrupted_at, stage, rank):
    model, folder = saved
    asked = Experiment(
        ASKED.tasks, ASKED.train, TuneConfig(**{**vars(ASKED.config), "steps": 4, "lora_rank": rank})
    )
    whole = rows(compare(model, Emulator.load(folder), asked, tmp_path / "undisturbed"))
    with interrupted_at(stage):
        compare(model, Emulator.load(folder), asked, tmp_path / "work")
    assert rows(compare(model, Emulator.load(folder), asked, tmp_path / "work")) == whole


def test_rows_of_older_versions_which_kept_no_choices_are_made_anew(saved, tmp_path, tokenizer):
    bench = Bench(saved[0], tokenizer, SPLIT, Cache(tmp_path))
    quick = Experiment(ASKED.tasks, ASKED.train, TuneConfig(steps=1, max_length=32))
    bench.ends(quick)
    for file in tmp_path.glob("[zf]*.json"):  # as they wrote it, under the key that they had
        stored = json.loads(file.read_text())
        if stored["key"].pop("kept", None):
            stored["value"]["mine"] |= {"choices": None, "right": None}
            bench.cache.place(stored["key"], ".json").write_text(json.dumps(stored))
            file.unlink()
    assert len(bench.lacks(None, quick)) == 2
    rows = bench.ends(quick)["rows"].values()
    assert all(len(row["mine"]["choices"]) == len(row["mine"]["right"]) == 6 for row in rows)


def test_rows_of_texts_are_those_of_older_versions(saved, tmp_path, tokenizer):
    prose = Experiment((Task("prose", (), "perplexity", texts=("w5 w6 w7 w8",)),), ASKED.train, ASKED.config)
    bench = Bench(saved[0], tokenizer, SPLIT, Cache(tmp_path))
    row = bench.zero_shot({"keep": 0.5}, lambda: Emulator.load(saved[1]), prose)
    [file] = tmp_path.glob("emulator_zero_shot-*.json")
    assert "kept" not in json.loads(file.read_text())["key"]
    assert row["prose"]["choices"] is None


def test_stages_of_another_question_are_not_reused(saved, tmp_path):
    model, folder = saved
    quick = TuneConfig(steps=1, max_length=32)
    first = compare(
        model, Emulator.load(folder), Experiment(ASKED.tasks, ASKED.train, quick), tmp_path / "work"
    )
    again = Experiment(ASKED.tasks, ASKED.train, quick, limit=3)
    assert rows(compare(model, Emulator.load(folder), again, tmp_path / "work")) != rows(first)


def test_an_emulator_of_another_model_is_refused(saved, tmp_path):
    _, folder = saved
    with pytest.raises(UserError, match="another model"):
        compare(tiny_model("llama", seed=5), Emulator.load(folder), ASKED, tmp_path / "work")


def test_a_tuned_emulator_is_refused(saved, tmp_path):
    model, folder = saved
    emulator, quick = (
        Emulator.load(folder),
        Experiment(ASKED.tasks, ASKED.train, TuneConfig(steps=1, max_length=32, heldout=0)),
    )
    compare(model, emulator, quick, tmp_path / "work")
    with pytest.raises(UserError, match="not the model's any more"):
        compare(model, emulator, quick, tmp_path / "other")


def test_no_time_counts_twice(saved, tmp_path, monkeypatch):
    """A stage's seconds are its own: scoring a tuned emulator is not the tuning."""
    model, folder = saved
    real = module.tune

    def slow(*args, **options):
        time.sleep(1.5)
        return real(*args, **options)

    monkeypatch.setattr(module, "tune", slow)
    quick = Experiment(ASKED.tasks, ASKED.train, TuneConfig(steps=1, max_length=32), limit=1)
    seconds = compare(model, Emulator.load(folder), quick, tmp_path / "work")["seconds"]
    for row in ("fine_tuned", "emulator_tuned"):
        assert seconds[f"{row}-curve"] >= 1.5 > seconds[row]


def test_an_emulator_is_made_only_where_something_lacks(saved, tmp_path, tokenizer):
    model, folder = saved
    made = []

    def make():
        made.append(Emulator.load(folder))
        return made[-1]

    quick = Experiment(ASKED.tasks, ASKED.train, TuneConfig(steps=1, max_length=32))
    bench = Bench(model, tokenizer, SPLIT, Cache(tmp_path / "work"))
    assert bench.lacks({"keep": 0.5}, quick) == ["emulator_zero_shot", "emulator_tuned", "plugged_in"]
    first = bench.trial({"keep": 0.5}, make, quick)
    assert bench.lacks({"keep": 0.5}, quick) == []
    assert bench.trial({"keep": 0.5}, make, quick) == first
    assert len(made) == 1
    assert bench.lacks({"keep": 0.6}, quick)
    assert list(first["rows"]) == ["emulator_zero_shot", "emulator_tuned", "plugged_in"]
    assert first["curve"][-1]["step"] == 1


def test_one_learning_rate_for_all_rows_chosen_in_the_full_model(saved, tmp_path, monkeypatch):
    model, folder = saved
    chosen, tuned = [], []
    real = module.tune

    def choose(emulator, examples, config):
        chosen.append((len(emulator.model.model.layers), config.seed))
        return Rate(3e-3, "trial", 8, ((3e-3, 2.0), (1e-3, None)))

    def tune(emulator, examples, config, **options):
        tuned.append(config.lr)
        return real(emulator, examples, config, **options)

    monkeypatch.setattr(module, "learning_rate", choose)
    monkeypatch.setattr(module, "tune", tune)
    for seed in (1, 2):  # one rate for every seed
        asked = replace(ASKED, config=TuneConfig(steps=1, max_length=32, seed=seed))
        results = compare(model, Emulator.load(folder), asked, tmp_path / "work")
    assert chosen == [(model.config.num_hidden_layers, 0)]
    assert tuned == [3e-3] * 4
    assert results["tuning"]["lr"] == results["learning_rate"]["lr"] == 3e-3
    assert Rate.of(results["learning_rate"]).tried == ((3e-3, 2.0), (1e-3, None))
    assert any(note.startswith("Learning rate 0.003, by a trial of 8 steps") for note in results["notes"])
