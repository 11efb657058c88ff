"""offsite report: one page for whatever a folder holds, and none where it does not belong."""

from __future__ import annotations

import shutil

import pytest

from offsite.bundles.bundle import read
from offsite.bundles.emulator import EmulatorCard
from offsite.cli.demo import story
from tests.cli.conftest import command, refused
from tests.report.pages import made_receipt, made_study, put


@pytest.fixture
def study(here):
    return put(here / "study", "results.json", made_study())


def test_it_writes_beside_the_results_and_draws_the_page_again(study):
    first, second = (command("report", study) for _ in range(2))
    assert first.out.rstrip() == second.out.rstrip() == f"Report: {study / 'report.html'}"
    assert (study / "report.html").stat().st_size > 1_000_000


def test_json_tells_where_the_page_is(study, here):
    assert command("report", study, "-o", here / "x.html", "--json").json == {"report": str(here / "x.html")}
    assert not (study / "report.html").exists()


def test_an_earlier_page_elsewhere_stays_until_it_is_forced(study, here):
    words = ("report", study, "-o", here / "x.html")
    assert command(*words).code == 0
    assert "--force" in refused(here, *words)
    assert command(*words, "--force").code == 0


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_page_of_the_users_stays(study, here, force):
    (study / "report.html").write_text("<p>mine")
    assert "already there" in refused(here, "report", study, *force)


def test_a_folder_without_results_is_told_what_is_looked_for(here):
    assert "frontier.json" in refused(here, "report", here)
    assert "frontier.json" in refused(here, "report", here / "gone")


def test_nothing_is_written_into_a_bundle(world, here):
    for name in ("emulator", "emulator-receipt"):
        shutil.copytree(world / name, here / name)
    assert "is in a bundle" in refused(here, "report", here / "emulator", "-o", here / "emulator" / "r.html")
    ran = command("report", here / "emulator")
    assert ran.out.rstrip() == f"Report: {here / 'emulator-receipt' / 'report.html'}"
    read(here / "emulator", EmulatorCard)  # still sound
    shutil.rmtree(here / "emulator-receipt")
    assert command("report", here / "emulator", "--json").json["report"].endswith("emulator-report.html")


def test_an_emulator_its_receipt_and_a_tuning_are_one_page(world, here):
    for name in ("emulator", "emulator-receipt", "adapter", "adapter-receipt"):
        shutil.copytree(world / name, here / name)
    put(here / "mine-receipt", "receipt.json", made_receipt())
    page = here / "page.html"
    assert command("report", here, "-o", page).code == 0
    text = page.read_text(encoding="utf-8")
    body = text[: text.index("plotly.js v")]
    assert body.count("<article") == 3
    assert "Emulator: emulator" in body
    assert "The blueprint" in body
    assert "Keep this page to yourself" in body


def test_the_demo_ends_with_it(here):
    assert story(here / "demo", quick=True)[-1] == ["report", str(here / "demo")]
