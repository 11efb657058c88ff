"""The report of a training: the data as they are, sentences that follow from them, and nothing else runs."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import pytest
import torch

from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.report.figures import DEPTHS, shades
from offsite.report.training import write_training
from tests.families import tiny_model
from tests.report.pages import ATTACK, LOADING, Page

LAYERS = [3, 4, 5, 6, 7, 8]
LAST = [0.5, -2.0, 4.25, -1.0, 3.0, -0.04]


@pytest.fixture
def given():
    """Twenty steps over which layer 4 falls below layer 3 at the eleventh."""
    steps = range(20)
    scores = [[-0.5, 0.5, *LAST[2:]] if step < 10 else LAST for step in steps]
    return {
        "title": "smollm2-135m",
        "layers": LAYERS,
        "loss": [6.0 - 0.1 * step for step in steps],
        "judged": [5.0 - 0.05 * step for step in steps],
        "scores": scores,
        "facts": {"Method": "scaleot", "Steps": "20"},
    }


@pytest.fixture
def page(tmp_path):
    def made(given):
        return Page(write_training(tmp_path / "report.html", **given).read_text(encoding="utf-8"))

    return made


def test_figures_hold_the_data(page, given):
    judged, trained, moving, importance = page(given).json
    assert [figure["data"][0]["y"] for figure in (judged, trained)] == [given["judged"], given["loss"]]
    assert {trace["x0"] for figure in (judged, trained, moving) for trace in figure["data"]} == {1}
    by_layer = {trace["meta"]: trace["y"] for trace in moving["data"]}
    assert by_layer == {layer: [step[i] for step in given["scores"]] for i, layer in enumerate(LAYERS)}
    (bars,) = importance["data"]
    assert (bars["meta"], bars["x"]) == (LAYERS, LAST)
    assert bars["y"] == sorted(bars["y"]), "the bottom of the stack is at the bottom"
    assert importance["layout"]["yaxis"]["range"][0] < importance["layout"]["yaxis"]["range"][1]
    assert bars["text"][-1] == "0.0"
    assert bars["text"][1] == "−2.0"


def test_a_layer_has_one_colour_and_its_number_wherever_it_is(page, given):
    *_, moving, importance = page(given).json
    (bars,) = importance["data"]
    for trace, colour, name in zip(moving["data"], bars["marker"]["color"], bars["hovertext"], strict=True):
        assert trace["line"]["color"] == colour
        assert name == f"layer {trace['meta']}"
        assert name in trace["hovertemplate"]
    assert len(set(bars["marker"]["color"])) == len(LAYERS)


def test_running_median_ignores_a_spike(page, given):
    given["loss"][8] = 100.0
    smooth = page(given).json[1]["data"][1]["y"]
    assert len(smooth) == 20
    assert max(smooth) < 6.1


def test_sentences_follow_from_the_numbers(page, given):
    text = page(given).text
    assert "Layers 4 and 6 can go first; layer 5 matters most." in text
    assert (
        "Layers 4 and 6 matter least and give way first; layers 5 and 7 matter most and stay longest." in text
    )
    assert "loss on held-out text fell from 4.97 to 4.07 nats a token in 20 steps" in text
    assert "What harmonizers are trained on went from 5.950 to 4.150, by the medians" in text
    assert "The 2 layers that go first have been the same since step 11 of 20." in text
    assert "4 · 6 · 8 · 3 · 7 · 5" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"judged": [4.0] * 20}, "the loss on held-out text stayed at 4.00"),
        ({"judged": [4.0 + step for step in range(20)]}, "the loss on held-out text rose from 4.50 to 22.50"),
        ({"judged": [math.inf] * 20}, "was not a finite number"),
        ({"scores": [[0.0] * 6] * 20}, "No layer was found to matter more than another."),
        ({"layers": [2], "scores": [[1.0]] * 20}, "The scores put no layer before another."),
        (
            {"layers": [2, 3], "scores": [[1.0, 2.0]] * 20},
            "Layer 2 matters least and gives way first; layer 3 matters most and stays longest.",
        ),
    ],
)
def test_what_is_said_of_odd_runs(page, given, change, says):
    text = page(given | change).text
    assert says in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_a_single_step_is_a_page_with_dots(page, given):
    made = page(given | {name: given[name][-1:] for name in ("loss", "judged", "scores")})
    assert "in 1 step." in made.text
    assert all("markers" in trace["mode"] for figure in made.json[:3] for trace in figure["data"])


def test_losses_that_are_not_finite_are_gaps(page, given):
    given["loss"][4] = math.nan
    given["judged"][5] = math.inf
    (held, _), (trained, smooth) = ([trace["y"] for trace in f["data"]] for f in page(given).json[:2])
    assert held[5] is None
    assert trained[4] is None
    assert None not in smooth


def test_it_says_that_it_is_not_to_be_sent(page, given):
    text = page(given).text
    assert "not to be sent" in text
    assert text.index("not to be sent") < text.index("Loss of the mixed stacks")


def test_page_loads_nothing_and_holds_no_folder(page, given, tmp_path):
    made = page(given)
    assert not [found for found in made.attributes if found[1] in LOADING]
    assert not re.search(r"@import|url\(", made.style)
    policy = next(value for _, name, value in made.attributes if name == "content" and "src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert len(made.scripts) == 2
    assert str(tmp_path) not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_no_string_from_outside_becomes_markup(page, given):
    kind, evil = (page(given | {"title": word, "facts": {word: word}}) for word in ("kind", ATTACK))
    assert (evil.tags, evil.scripts, evil.json) == (kind.tags, kind.scripts, kind.json)
    assert evil.attributes == kind.attributes
    assert evil.text.count(ATTACK) == kind.text.count("kind") == 4


def test_the_same_training_makes_the_same_file_and_no_other(tmp_path, given):
    first, second = (write_training(tmp_path / name, **given) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_without_plotly_the_extra_is_named(tmp_path, given, no_plotly):
    with pytest.raises(UserError, match=re.escape("pip install 'offsite[report]'")):
        write_training(tmp_path / "report.html", **given)
    assert not list(tmp_path.iterdir())


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("count", [1, 2, 26, 126])
def test_shades_stand_out_on_both_grounds_and_end_where_they_should(count):
    found = shades(count)
    assert len(found) == count
    assert found[0] == DEPTHS[0]
    assert count == 1 or found[-1] == DEPTHS[-1]
    for colour in found:
        for ground in ("#fbfaf8", "#15171a"):
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_a_profile_opens_with_its_report_in_its_folder(tmp_path, given):
    tensors = Parts()
    tensors.put("harmonizers", {"scores": torch.arange(4.0)})
    Profile.of(tiny_model("llama"), Split(), tensors, method="scaleot").save(tmp_path / "profile")
    write_training(tmp_path / "profile" / "report.html", **given)
    opened = Profile.load(tmp_path / "profile")
    assert list(opened.tensors) == ["harmonizers/scores"]
    assert torch.equal(opened.tensors["harmonizers/scores"], torch.arange(4.0))


@pytest.mark.slow
@pytest.mark.parametrize("evil", [False, True])
def test_a_browser_draws_it_and_complains_of_nothing(tmp_path, given, evil):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    if evil:
        given |= {"title": ATTACK, "facts": {ATTACK: ATTACK}}
    path = write_training(tmp_path / "report.html", **given)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += f" --enable-logging=stderr --virtual-time-budget=5000 --user-data-dir={tmp_path / 'profile'}"
    ran = subprocess.run(
        [chromium, *flags.split(), "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr
    drawn = ran.stdout[: ran.stdout.index("plotly.js v")]
    assert drawn.count('class="plot js-plotly-plot"') == 4
    assert drawn.count('class="trace bars"') == 1
    assert "<title>owned" not in drawn
