"""What is found in a folder, and that nothing from its files becomes markup."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from offsite.bundles.adapter import Adapter
from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, origin
from offsite.report import sections
from offsite.report.sections import found, page
from tests.families import tiny_model
from tests.report.pages import (
    ATTACK,
    LOADING,
    Page,
    blueprint_receipt,
    browsed,
    made_fidelity,
    made_frontier,
    made_receipt,
    made_study,
    put,
)
from tests.sample_bundles import sign

PLACES = [{"layer": 2}, {"layer": 3, "harmonizer": 4}, {"layer": 5, "ranks": {"q": 2}, "channels": [0, 2]}]


def furnish(folder, results, word="kind"):
    """A folder of one of each, with `word` wherever a file has a word of its own."""
    put(folder / "study", "results.json", made_study(word, word))
    put(folder / "frontier", "frontier.json", made_frontier(word, word))
    put(folder / "fidelity", "fidelity.json", made_fidelity(word))
    put(folder / "e-receipt", "receipt.json", blueprint_receipt(PLACES, word, word))
    put(folder / "a-receipt", "receipt.json", made_receipt(word))
    put(folder / "comparison", "results.json", results | {"model": word, "notes": [word], "sources": {}})
    put(folder / "other", "data.json", {"rows": 1})
    return folder


@pytest.fixture
def house(tmp_path, results):
    return furnish(tmp_path / "house", results)


def test_one_page_tells_of_all_in_the_folders(house):
    titles = [part.title for part in found(house)]
    assert titles == [
        "Comparison: kind, arc_easy", "Study: kind, text", "Frontier: kind", "Gradient fidelity", "Emulator: e",
        "Adapter: a",
    ]  # fmt: skip
    made = Page(page(house))
    assert all(title in made.text for title in titles)
    assert len(made.scripts) == 2, "plotly once"
    hrefs = [value for _, name, value in made.attributes if name == "href"]
    identities = {value for _, name, value in made.attributes if name == "id"}
    assert hrefs == [f"#part-{i}" for i in range(6)]
    assert {href[1:] for href in hrefs} <= identities
    assert made.tags.count("h1") == 1


@pytest.mark.parametrize("name", ["study", "frontier", "fidelity", "e-receipt", "a-receipt", "comparison"])
def test_a_folder_of_one_is_its_own_page(house, name):
    made = Page(page(house / name))
    assert made.tags.count("h1") == 1
    assert "article" not in made.tags
    assert made.json


def test_a_frontier_comes_with_the_emulator_that_it_chose(house):
    shutil.copytree(house / "e-receipt", house / "frontier" / "e-receipt")
    assert [part.title for part in found(house / "frontier")] == ["Frontier: kind", "Emulator: e"]


def test_a_private_page_says_so_at_its_top_and_another_does_not(house):
    for folder in (house, *(house / name for name in ("e-receipt", "a-receipt", "frontier"))):
        text = Page(page(folder)).text
        assert text.count("Keep this page to yourself.") == 1
        assert text.index("Keep this page") < text.index("To repeat it")
    for name in ("study", "comparison"):
        assert "Keep this page" not in Page(page(house / name)).text


def test_no_string_from_a_file_becomes_markup(tmp_path, results):
    kind, evil = (Page(page(furnish(tmp_path / w[:4].strip("<"), results, w))) for w in ("kind", ATTACK))
    assert evil.tags == kind.tags
    assert evil.scripts == kind.scripts
    assert [name for _, name, _ in evil.attributes] == [name for _, name, _ in kind.attributes]
    assert not [a for a in evil.attributes if a[1] in LOADING - {"href"}]
    assert evil.text.count(ATTACK) > 12
    for words in strings(evil.json):
        assert "<" not in re.sub(r"</?b>|<br>|<extra></extra>", "", words)
    assert "%{" not in json.dumps(
        [t for f in evil.json for t in f["data"] if "7 * 7" in str(t.get("hovertemplate"))]
    )


def strings(value):
    """Every string in a figure."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


def test_the_page_loads_nothing_and_names_no_folder_above(house, tmp_path):
    html = page(house)
    policy = next(value for _, name, value in Page(html).attributes if name == "content" and "src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert str(tmp_path) not in html
    assert html == page(house)


def test_inspects_own_words_are_a_point(tmp_path):
    told = {"method": "gradot", "fidelity": {"model": "m", "text": "t", "blocks": 2, "length": 8, "keep": 0.7,
            "cosine": 0.88, "relative_error": 0.5, "loss": 4.0, "full_loss": 3.5, "loss_gap": 0.5}}  # fmt: skip
    made = Page(page(put(tmp_path, "fidelity.json", told)))
    assert [figure["data"][0]["y"] for figure in made.json] == [[0.88], [0.5], [0.5]]


def test_fidelity_is_sorted_by_keep(tmp_path):
    cosine = Page(page(put(tmp_path, "fidelity.json", made_fidelity()))).json[0]
    assert [trace["name"] for trace in cosine["data"]] == ["gradot", "svd"]
    assert cosine["data"][0]["x"] == [0.5, 0.9]


def test_a_tuning_draws_its_losses(tmp_path):
    made = Page(page(put(tmp_path, "receipt.json", made_receipt())))
    training, held = made.json[0]["data"]
    assert training["y"] == [4.75, 4.5, 4.25]
    assert held["y"] == pytest.approx([4.8, 4.6, 4.4])
    assert "In 3 steps the loss on answers held out fell from 4.80 to 4.40." in made.text


def test_where_nothing_is_it_says_what_it_looks_for(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"results\.json, frontier\.json") as refusal:
            found(folder)
        assert str(refusal.value).count(". ") == 0


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"rows": {}}'])
def test_a_file_that_is_not_sound_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"let `offsite compare`|write it anew"):
        found(tmp_path)


@pytest.mark.parametrize("listed", [False, True], ids=["beside", "on the card"])
@pytest.mark.parametrize("inner", [False, True], ids=["itself", "one folder down"])
@pytest.mark.parametrize("kind", ["emulator", "adapter"])
def test_a_bundle_is_checked_before_anything_in_its_folder_is_parsed(
    tmp_path, monkeypatch, kind, inner, listed
):
    folder, model = tmp_path / "sent" if inner else tmp_path, tiny_model("llama")
    emulator = build(model, Split(1, 1), (Place(2),))
    (emulator if kind == "emulator" else Adapter.of(model, origin(model, Split(1, 1)))).save(folder)
    (folder / "results.json").write_text("[" * 1000)
    if listed:
        sign(folder)
    monkeypatch.setattr(sections, "_read", lambda _: pytest.fail("parsed"))
    why = {"emulator": r"'results\.json', which no emulator may", "adapter": "and nothing else"}[kind]
    with pytest.raises(UserError, match=rf"{why}|'results\.json' is in the folder but not"):
        found(tmp_path)


@pytest.mark.parametrize("card", ["{", "[]", '{"format": "offsite-else/1"}', '{"format": 5}'])
def test_a_folder_with_a_card_of_no_bundle_is_refused_before_anything_else_is_parsed(
    tmp_path, monkeypatch, card
):
    (tmp_path / "card.json").write_text(card)
    (tmp_path / "results.json").write_text("[" * 1000)
    monkeypatch.setattr(sections, "_read", lambda _: pytest.fail("parsed"))
    with pytest.raises(UserError, match=r"card\.json|says its format is"):
        found(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("evil", [False, True])
def test_a_browser_draws_every_figure_and_complains_of_nothing(tmp_path, results, evil):
    file = tmp_path / "report.html"
    file.write_text(page(furnish(tmp_path / "house", results, ATTACK if evil else "kind")), encoding="utf-8")
    for scheme in ("0", "1"):  # dark and light
        seen = browsed(file, tmp_path, "--dump-dom", f"--blink-settings=preferredColorScheme={scheme}")
        drawn = seen[: seen.index("plotly.js v")]
        assert (
            drawn.count('class="plot js-plotly-plot"') == len(Page(file.read_text(encoding="utf-8")).json) > 10
        )
        assert drawn.count('class="trace bars"') >= 4
        assert "<title>owned" not in drawn


@pytest.mark.slow
def test_it_fits_a_phone_and_prints(tmp_path, house):
    (tmp_path / "report.html").write_text(page(house), encoding="utf-8")
    frame = tmp_path / "phone.html"
    frame.write_text(
        '<iframe id=f src=report.html width=390 height=800 style="border:0"></iframe><script>'
        "const width = () => f.contentDocument.documentElement.scrollWidth;"
        "f.onload = () => { document.title = 'width ' + width() }</script>"
    )
    seen = browsed(frame, tmp_path, "--dump-dom", "--hide-scrollbars", "--allow-file-access-from-files")
    assert "<title>width 390</title>" in seen
    browsed(tmp_path / "report.html", tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


@pytest.mark.parametrize(
    "call", ["offsite compare\nrm -rf x", ["offsite", "compare\nrm -rf x"]], ids=["text", "words"]
)
def test_a_call_with_a_line_break_is_one_line_to_paste(tmp_path, results, call):
    made = page(put(tmp_path, "results.json", results | {"call": call}))
    assert "rm -rf x" in made
    assert "\nrm -rf" not in made
