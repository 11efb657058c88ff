r"""Methods on equal budgets: the five rows for each method, budget and seed, as JSON and as a table.

    python benchmarks/methods.py smollm2-135m --methods gradot uniform crash:share=false svd --keeps 0.7 \
        --tasks arc_easy --seeds 0 1 2 --limit 300 --profiles profiles -o docs/methods.json

Zero-shot and fine-tuned are computed once for a task and seed. Each result is written as soon as it is there;
run again, only what lacks is computed, and the table is made of all that is in the file. A method is a word
such as `gradot:form=paper`, a chain such as `scaleot:alpha=0.25,beta=1+gradot`, or an emulator distilled for so
many steps, as `uniform~200`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fidelity import Owner, named  # the benchmark beside this one
from offsite import models, tasks
from offsite.data_owner.tune import TuneConfig, tune
from offsite.emulator import Emulator
from offsite.folders import write_text
from offsite.owner.build import build, keep_of, lossless
from offsite.owner.distill import DistillConfig, distill
from offsite.owner.methods.base import Method
from offsite.owner.plug import plug
from offsite.owner.stages import plan
from offsite.record import record
from offsite.scoring import evaluate
from offsite.split import Split
from offsite.text import blocks
from offsite.training import autocast

Run = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all runs have in common, and the file that they go to."""

    owner: Owner
    file: Path
    steps: int
    limit: int

    def runs(self) -> list[Run]:
        """Those that are there."""
        return json.loads(self.file.read_text(encoding="utf-8"))["runs"] if self.file.exists() else []

    def once(self, key: Run, make: Any) -> Run:
        """The run of this `key`, made now unless it is there."""
        found = [run for run in self.runs() if key.items() <= run.items()]
        if found:
            return found[0]
        start = time.monotonic()
        run = key | make() | {"seconds": round(time.monotonic() - start)} | {"record": record(key["seed"])}
        write_text(self.file, json.dumps({"runs": [*self.runs(), run]}, indent=1) + "\n")
        return run

    def score(self, model: PreTrainedModel, task: str) -> dict[str, float]:
        """Of the task's first questions."""
        asked = tasks.load(task, "test")
        with autocast(model):
            return asdict(evaluate(model, self.owner.tokenizer, [asked], limit=self.limit)[asked.name])

    def tuned(self, emulator: Emulator, task: str, seed: int) -> Any:
        """The adapter tuned on the task's train split."""
        return tune(emulator, tasks.examples(task), TuneConfig(steps=self.steps, seed=seed))

    def ends(self, task: str, seed: int) -> Run:
        """Zero-shot and fine-tuned."""

        def make() -> Run:
            full = lossless(self.owner.model, Split(), self.owner.tokenizer)
            zero = self.score(self.owner.model, task)
            self.tuned(full, task, seed)
            return {"zero_shot": zero, "fine_tuned": self.score(full.model, task)}

        return self.once({"method": "", "task": task, "seed": seed}, make)

    def emulator(self, spec: str, keep: float, seed: int) -> Emulator:
        """Of a chain of methods; distilled where it ends in `~STEPS`."""
        chain, _, steps = spec.partition("~")
        methods = [_seeded(named(word), seed) for word in chain.split("+")]
        blueprint = plan([(method, self.owner.profile(method)) for method in methods], keep)
        name = "+".join(method.name for method in methods)
        made = build(self.owner.model, Split(), blueprint, method=name, tokenizer=self.owner.tokenizer)
        if steps:
            trained = [str(seed)] if any("seed" in method.knobs for method in methods) else []
            self._distill(made, int(steps), "-".join([chain, str(keep), steps, *trained]))
        return made

    def _distill(self, emulator: Emulator, steps: int, name: str) -> None:
        """In place; a distilled middle is kept beside the profiles."""
        config = DistillConfig(steps=steps)
        texts = tasks.texts(self.owner.text)
        tokens = blocks(texts, self.owner.tokenizer, config.length, steps * config.batch_size)
        home = self.owner.profiles or self.file.parent
        saved = home / f"distilled-{name}"
        if saved.exists():
            emulator.model = Emulator.load(saved).model
            return
        distill(emulator, self.owner.model, tokens, config, work=home / f".distilling-{name}", resume=True)
        emulator.save(saved)

    def method(self, name: str, keep: float, task: str, seed: int) -> Run:
        """The three rows of one emulator."""

        def make() -> Run:
            emulator = self.emulator(name, keep, seed)
            rows: Run = {"stored": keep_of(emulator, self.owner.model)}
            rows["emulator_zero_shot"] = self.score(emulator.model, task)
            adapter = self.tuned(emulator, task, seed)
            rows["emulator_tuned"] = self.score(emulator.model, task)
            displaced = plug(self.owner.model, adapter)
            rows["plugged_in"] = self.score(self.owner.model, task)
            plug(self.owner.model, displaced)
            return rows

        return self.once({"method": name, "keep": keep, "task": task, "seed": seed}, make)


def _seeded(method: Method, seed: int) -> Method:
    """A method that trains has the run's seed, unless its word says another."""
    return replace(method, seed=seed) if method.knobs.get("seed") == 0 else method


def table(runs: Sequence[Run]) -> str:
    """Means over the seeds, in Markdown; the gain is the share of fine-tuning's fall of the answer nll."""
    ends = {(run["task"], run["seed"]): run for run in runs if not run["method"]}
    lines = [
        "| task | keep | method | seeds | emulator zero-shot | emulator tuned | plugged in | gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(task for task, _ in ends):
        of = [run for (name, _), run in ends.items() if name == task]
        for row in ("zero_shot", "fine_tuned"):
            lines.append(f"| {task} | | {row} | {len(of)} | | | {_cell([run[row] for run in of])} | |")
        for keep, name in sorted({(r["keep"], r["method"]) for r in runs if r["method"] and r["task"] == task}):
            some = [r for r in runs if (r["method"], r.get("keep"), r["task"]) == (name, keep, task)]
            gains = [_gain(ends[task, run["seed"]], run) for run in some]
            rows = [
                _cell([r[row] for r in some]) for row in ("emulator_zero_shot", "emulator_tuned", "plugged_in")
            ]
            lines.append(
                f"| {task} | {keep} | {name} | {len(some)} | {' | '.join(rows)} | {_mean(gains, 0)} % |"
            )
    return "\n".join(lines)


def _gain(ends: Run, run: Run) -> float:
    zero, full = (ends[row]["nll"] for row in ("zero_shot", "fine_tuned"))
    return 100 * (zero - run["plugged_in"]["nll"]) / (zero - full)


def _cell(scores: Sequence[dict[str, float]]) -> str:
    return f"{_mean([100 * s['acc'] for s in scores], 1)} / {_mean([s['nll'] for s in scores], 2)}"


def _mean(values: Sequence[float], digits: int) -> str:
    """With the standard error over seeds, where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--methods", nargs="+", default=["gradot", "uniform", "crash:share=false", "svd"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.7])
    parser.add_argument("--tasks", nargs="+", default=["arc_easy"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--text", default="wikipedia")
    parser.add_argument("--profiles", type=Path, default=None)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/methods.json"))
    args = parser.parse_args()
    owner = Owner(*models.load(args.model), args.text, args.profiles)
    bench = Bench(owner, args.output, args.steps, args.limit)
    for name in args.methods:
        [named(word) for word in name.partition("~")[0].split("+")]  # what is misspelt is refused at once
    for seed in args.seeds:
        for task in args.tasks:
            bench.ends(task, seed)
            for keep in args.keeps:
                for name in args.methods:
                    bench.method(name, keep, task, seed)
                    print(table(bench.runs()), flush=True)


if __name__ == "__main__":
    main()
