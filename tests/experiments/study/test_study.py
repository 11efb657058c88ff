"""A study is what its cells are by themselves, does nothing twice, and ends the same wherever it is stopped."""

from __future__ import annotations

import json

import pytest

from offsite.data.tasks import cache as shelf
from offsite.data.tasks import definition, examples, load
from offsite.data_owner.tune import TuneConfig
from offsite.errors import UserError
from offsite.experiments import compare
from offsite.experiments.cache import Cache
from offsite.experiments.compare import Bench, Experiment
from offsite.experiments.study import forecast as module
from offsite.experiments.study import run
from offsite.experiments.study.forecast import forecast
from offsite.experiments.study.run import Study
from offsite.model.split import Split
from offsite.owner.build import build
from offsite.owner.methods import method_named
from offsite.training import loop
from tests.families import tiny_model
from tests.test_laws import same, state


def test_a_cell_is_the_experiment_by_itself(recipe, play, tokenizer, tmp_path, data):
    runs, said = play(recipe(seeds=[1]), tmp_path / "work")
    assert len(said) == len(runs) == 6
    model, split, word = tiny_model("llama"), Split(), str(data / "tell.jsonl")
    asked = Experiment([load(word, "test")], examples(word), TuneConfig(steps=2, batch_size=2, seed=1), limit=4)
    bench = Bench(model, tokenizer, split, Cache(tmp_path / "other"))
    method = method_named("uniform")

    def make():
        return build(model, split, method.plan(method.profile(model, split), 0.5), tokenizer=tokenizer)

    before = state(model)
    ends, trial = bench.ends(asked), bench.trial({"mine": 1}, make, asked)
    assert same(state(model), before)
    cells = {(run["method"], run["task"]): run for run in runs}
    for rows, cell in ((ends["rows"], cells["", "tell"]), (trial["rows"], cells["uniform", "tell"])):
        for row, scores in rows.items():
            assert cell[row] == scores["tell"], row
    assert cells["uniform", "tell"]["stored"] == trial["stored"] == 0.5
    assert "keep" not in cells["", "tell"]
    assert cells["src:beta=0.5", "tell"]["keep"] is None


def test_nothing_is_done_twice(recipe, play, tmp_path, monkeypatch):
    runs, said = play(recipe(), tmp_path / "work")
    assert len(said) == len(runs) == 12
    assert not list((tmp_path / "work").glob("*-adapter"))
    assert not list((tmp_path / "work").glob("*-checkpoints"))
    monkeypatch.setattr(compare, "tune", None)
    monkeypatch.setattr(compare, "evaluate", None)
    assert play(recipe(), tmp_path / "work") == (runs, [])
    # a recipe that shares cells has them; what does not train has its first row for every seed
    shared = recipe(methods=["uniform"], seeds=[1])
    assert play(shared, tmp_path / "work")[0] == [
        run for run in runs if run["seed"] == 1 and run["method"] in ("", "uniform")
    ]
    zero = [run["emulator_zero_shot"] for run in runs if run["method"] == "uniform" and run["task"] == "ask"]
    assert zero[0] == zero[1]


def test_another_limit_tunes_again_to_the_same_adapter(recipe, play, tmp_path):
    play(recipe(seeds=[0]), tmp_path / "work")
    again, _ = play(recipe(seeds=[0], limit=3), tmp_path / "work")
    assert again == play(recipe(seeds=[0], limit=3), tmp_path / "fresh")[0]


@pytest.mark.parametrize("stage", [5, *(pytest.param(each, marks=pytest.mark.long) for each in (2, 9, 13))])
def test_killed_at_a_stage_and_run_again_it_ends_the_same(recipe, play, tmp_path, interrupted_at, whole, stage):
    asked = recipe(seeds=[0], tasks=recipe().tasks[:1], methods=["uniform~2", "src:beta=0.5"])
    with interrupted_at(stage):
        play(asked, tmp_path / "work")
    assert play(asked, tmp_path / "work")[0] == whole


@pytest.fixture(scope="module")
def whole(data, tokenizer, tmp_path_factory):
    """The runs of an undisturbed study of the kind above."""
    from offsite.experiments.study import Recipe, run
    from tests.experiments.study.conftest import PAIRS

    asked = PAIRS | {
        "methods": ["uniform~2", "src:beta=0.5"],
        "model": "hub/tiny",
        "text": str(data / "text.txt"),
    }
    recipe = Recipe.model_validate(asked | {"tasks": str(data / "ask.jsonl")})
    runs = run(recipe, tiny_model("llama"), tokenizer, tmp_path_factory.mktemp("whole"))["runs"]
    return [{name: value for name, value in one.items() if name != "seconds"} for one in runs]


def test_killed_amid_a_profile_and_a_distillation(recipe, play, tmp_path, monkeypatch, whole):
    asked = recipe(seeds=[0], tasks=recipe().tasks[:1], methods=["uniform~2", "src:beta=0.5"])
    from offsite.owner import distill as distilling
    from offsite.owner.parts import Parts

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for place, name in ((distilling, "fit"), (Parts, "put"), (loop, "bar")):
        monkeypatch.setattr(place, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            play(asked, tmp_path / "work")
        monkeypatch.undo()
    assert play(asked, tmp_path / "work")[0] == whole


def test_a_distilled_emulator_is_known_again(recipe, tokenizer, tmp_path):
    """By its digest, which the checkpoints of a tuning that was interrupted go by."""
    asked = recipe(methods=["uniform~2"])
    digests = set()
    for _ in range(2):
        emulators = Study(asked, tiny_model("llama"), tokenizer, tmp_path / "work").emulators(asked.text)
        digests.add(emulators.emulator(asked.chains[0], 0.5, 0).digest)
    assert len(digests) == 1
    assert "" not in digests


def test_a_profile_serves_every_knob_that_is_free(recipe, play, tmp_path):
    asked = recipe(
        methods=["src:beta=0.5", "src:beta=0.8", "src:norm=plain"], seeds=[0], tasks=recipe().tasks[:1]
    )
    play(asked, tmp_path / "work")
    assert len(list((tmp_path / "work" / "profiles").glob("*/*"))) == 2


def test_a_method_whose_code_changed_is_computed_anew(recipe, play, tmp_path, monkeypatch):
    """Same name, knobs and versions: the old rows would be silently wrong."""
    from offsite.owner.methods import METHODS
    from offsite.owner.methods.src import SRC

    class Inverted(SRC):
        """Cuts to another rank than it is asked for."""

        def plan(self, profile, keep):
            return SRC(beta=1.0 - self.beta / 2, norm=self.norm).plan(profile, keep)

    asked = recipe(methods=["src:beta=0.5"], seeds=[0], tasks=recipe().tasks[:1])
    before, _ = play(asked, tmp_path / "work")
    monkeypatch.setitem(METHODS, "src", Inverted)
    after, said = play(asked, tmp_path / "work")
    assert len(said) == 1, "the model's own rows stay"
    assert after[0] == before[0]
    assert after[1]["stored"] != before[1]["stored"]
    assert len(list((tmp_path / "work" / "profiles").glob("*/*"))) == 2, (
        "the old profile serves the old code only"
    )
    assert after == play(asked, tmp_path / "fresh")[0]


def test_a_stack_without_a_middle_is_refused_before_any_work(recipe, play, tmp_path):
    with pytest.raises(UserError, match="no middle between 4 bottom and 4 top"):
        play(recipe(bottom=4, top=4), tmp_path / "work")
    assert not (tmp_path / "work").exists()


class TestForecast:
    @pytest.fixture
    def asked(self, recipe, tokenizer, tmp_path):
        tiny_model("llama").save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return recipe(model=str(tmp_path / "model"))

    def test_it_says_what_is_left_and_writes_nothing(self, asked, play, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_speed", lambda model: 1e-6)  # or another process decides what is faster
        work = tmp_path / "work"
        plan = forecast(asked, work)
        assert not work.exists()
        assert (plan.cells, len(plan.todo)) == (12, 12)
        assert plan.seconds > 0
        assert plan.memory > 0
        play(asked.model_copy(update={"seeds": (0,)}), work)
        left = forecast(asked, work)
        assert {step.seed for step in left.todo} == {1}
        ends, *others = [step.rows for step in left.todo]
        assert ends == ["fine_tuned"]  # the zero-shot rows need no seed
        assert others[0] == ["emulator_tuned", "plugged_in"]
        assert left.seconds < plan.seconds

    def test_a_large_model_is_counted_and_not_opened(self, asked, play, tmp_path, monkeypatch):
        play(asked.model_copy(update={"seeds": (0,)}), tmp_path / "done")
        monkeypatch.setattr(module, "_SMALL", 1)
        monkeypatch.setattr(module.loading, "load", None)
        plan = forecast(asked, tmp_path / "work")
        assert len(plan.todo) == 12
        assert plan.memory > 0
        assert plan.seconds is None, "nothing was timed on this machine"
        assert "nothing of this study was timed yet" in plan.how
        plan = forecast(asked, tmp_path / "done")
        assert plan.seconds > 0
        assert "of steps like these" in plan.how

    def test_data_that_is_not_here_is_named(self, asked, tmp_path, cache):
        plan = forecast(asked.model_copy(update={"tasks": ("sciq",)}), tmp_path / "work")
        assert plan.how.startswith(
            "sciq is not on this machine yet, so the plan is as if nothing was done yet."
        )

    def test_a_model_that_is_not_here_has_a_plan_and_no_estimate(self, recipe, tmp_path):
        plan = forecast(recipe(model="nobody/nothing"), tmp_path / "work")
        assert (len(plan.todo), plan.seconds, plan.memory) == (12, None, None)
        assert "not on this machine" in plan.how


def test_a_study_of_a_model_whose_adapter_is_a_lora(recipe, play, tmp_path):
    runs, _ = play(recipe(seeds=[0], tasks=recipe().tasks[:1], lora_rank=2), tmp_path / "work")
    assert all(run["plugged_in"] != run["emulator_tuned"] for run in runs if run["method"])


def test_the_rows_that_lack(recipe, tokenizer, tmp_path):
    asked = recipe()
    study = Study(asked, tiny_model("llama"), tokenizer, tmp_path / "work")
    cell = next(asked.cells())
    assert study.lacks(cell) == ["zero_shot", "fine_tuned"]
    study.bench.ends(study.experiment(cell))
    assert study.lacks(cell) == []


def test_what_is_tuned_on_the_same_data_is_tuned_once_for_all_tasks(recipe, play, tmp_path, data, monkeypatch):
    tuned = []
    real = compare.tune
    monkeypatch.setattr(compare, "tune", lambda *a, **more: tuned.append(more["what"]) or real(*a, **more))
    asked = recipe(train=str(data / "ask.jsonl"), seeds=[0], methods=["uniform"])
    runs, said = play(asked, tmp_path / "work")
    assert tuned == ["Fine-tuning", "Tuning the emulator"]
    assert [(run["method"], run["task"]) for run in runs] == [
        ("", "ask"), ("", "tell"), ("uniform", "ask"), ("uniform", "tell"),
    ]  # fmt: skip
    assert said[1] == f"2 of 2: uniform at keep 0.5 on {', '.join(asked.tasks)}, seed 0"
    alone, _ = play(recipe(seeds=[0], methods=["uniform"]), tmp_path / "alone")
    assert runs[::2] == alone[:2]  # on the task that it was tuned on, the same


def test_a_cell_that_fails_costs_itself_only_and_is_told(recipe, tokenizer, tmp_path, monkeypatch):
    from offsite.experiments.study import run, tabulate
    from offsite.experiments.study.emulators import EmulatorMaker

    real = EmulatorMaker.emulator

    def made(self, chain, keep, seed):
        if (chain.name, seed) == ("uniform", 0):
            raise UserError("The tuning ran away.")
        return real(self, chain, keep, seed)

    monkeypatch.setattr(EmulatorMaker, "emulator", made)
    asked = recipe(tasks=recipe().tasks[:1])
    results = run(asked, tiny_model("llama"), tokenizer, tmp_path / "work")
    assert [(one["method"], one["seed"]) for one in results["runs"]] == [
        ("", 0), ("src:beta=0.5", 0), ("", 1), ("uniform", 1), ("src:beta=0.5", 1),
    ]  # fmt: skip
    *_, note = results["notes"]
    assert (
        note == f"There are no figures of uniform at keep 0.5 on {asked.tasks[0]}, seed 0: The tuning ran away."
    )
    table = tabulate(results)
    assert any("uniform" in str(line[0]) for line in table.lines)
    assert note in table.markdown()
    with pytest.raises(UserError, match="The tuning ran away"):
        run(recipe(methods=["uniform"], seeds=[0]), tiny_model("llama"), tokenizer, tmp_path / "work")


def test_a_mixture_is_read_without_the_task_that_is_scored_and_the_results_say_so(
    recipe, tokenizer, tmp_path, cache
):
    for name in set(definition.mixtures()["mixture"].turns):
        if text := definition.texts().get(name):
            words = " ".join(f"w{n % 90 + 9}" for n in range(9000))
            shelf.put(text, "train", "wheel: here", "", [{"text": words}])
            continue
        rows = [{"prompt": f"w{n % 90 + 9}", "choices": [f"w{n}", "w5 w6"], "answer": 1} for n in range(9, 99)]
        for split in ("train", "test"):
            shelf.put(definition.questions()[name], split, "wheel: here", "", rows)
    read = {"text": "mixture", "blocks": 8, "length": 9}
    asked = recipe(tasks=["arc_easy", "sciq"], methods=["src:beta=0.5"], seeds=[0], **read)
    results = run(asked, tiny_model("llama"), tokenizer, tmp_path / "work")
    (note,) = [note for note in results["notes"] if "mixture" in note]
    assert note.endswith("scored or trained on: mixture:-arc_easy, mixture:-sciq.")
    cards = [json.loads(file.read_text()) for file in (tmp_path / "work").glob("profiles/*/*/profile.json")]
    assert sorted(card["text"] for card in cards) == ["mixture:-arc_easy", "mixture:-sciq"]


def test_a_seed_that_a_method_names_stays(recipe):
    said, free = recipe(methods=["scaleot:seed=0", "scaleot:alpha=0.5+gradot"]).chains
    assert said.seeded(3)[0].knobs["seed"] == 0
    assert free.seeded(3)[0].knobs["seed"] == 3


def test_a_method_that_reads_no_text_needs_none(recipe, play, tmp_path):
    runs, _ = play(recipe(seeds=[0], methods=["uniform"], text="wikitext2"), tmp_path / "work")  # not at hand
    assert [run["method"] for run in runs] == ["", "uniform"] * 2


def test_a_task_that_cannot_be_read_is_told_before_any_work(recipe, play, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"prompt": "w5"}\n')
    asked = recipe(tasks=[*recipe().tasks[:1], str(tmp_path / "broken.jsonl")])
    with pytest.raises(UserError, match=r"broken\.jsonl, line 1"):
        play(asked, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("*.json"))
