"""A tiny study: the data on disk, a recipe of it, and an undisturbed run to hold others against."""

from __future__ import annotations

import pytest

from offsite.experiments.study import Recipe, run
from tests.cli.conftest import write_jsonl
from tests.families import tiny_model

PAIRS = {"methods": ["uniform", "src:beta=0.5"], "keeps": [0.5], "steps": 2, "batch_size": 2, "limit": 4}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Questions of two kinds and a text; only to be read."""
    folder = tmp_path_factory.mktemp("data")
    for name, apart in (("ask", 20), ("tell", 60)):
        rows = [
            {"prompt": f"w{10 + i}", "choices": [f"w{apart + i}", f"w{apart + 9 + i} w5"], "answer": i % 2}
            for i in range(8)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    (folder / "text.txt").write_text(
        "\n".join(" ".join(f"w{3 + (i * j) % 120}" for i in range(64)) for j in range(600))
    )
    (folder / "prose.txt").write_text(
        "\n".join(" ".join(f"w{3 + (i * j) % 120}" for i in range(40)) for j in range(4))
    )
    return folder


@pytest.fixture
def recipe(data):
    """`recipe(**changes)`: two methods, one with a profile, on two tasks with two seeds."""

    def made(**changes):
        asked = {
            "model": "hub/tiny",
            "tasks": [str(data / "ask.jsonl"), str(data / "tell.jsonl")],
            "seeds": [0, 1],
        }
        asked |= {"text": str(data / "text.txt"), **PAIRS, **changes}
        return Recipe.model_validate(asked)

    return made


@pytest.fixture
def play(tokenizer):
    """`play(recipe, work)`: the runs of a recipe on the tiny model, and what it said on the way."""

    def played(recipe, work):
        said = []
        runs = run(recipe, tiny_model("llama"), tokenizer, work, said.append)["runs"]
        return [{name: value for name, value in one.items() if name != "seconds"} for one in runs], said

    return played
