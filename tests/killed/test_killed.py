"""Killed anywhere and run again, a command ends as if nothing had happened, and leaves nothing else.

The moments are drawn from KILLED_SEED (default 0), which every failure names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from offsite.bundles import keys, signing
from tests.killed.harness import Moment, Undisturbed, emptied, small_disk, tree

SEED = int(os.environ.get("KILLED_SEED", "0"))
FEW, MANY = 3, 30
KILLED = {-signal.SIGKILL, -signal.SIGXFSZ}  # the latter for writing more than a moment lets
LINES = {
    "profile, gradot": "profile M -o O --method gradot --text T --blocks 4 --length 16",
    "profile, scaleot": "profile M -o O --method scaleot --text T --steps 11 --blocks 24 --length 16 "
    "--set batch_size=2 --set rank=4",
    "distill": "compress M -o O --method uniform --keep 0.5 --distill 11 --text T",
    "compress": "compress M -o O --method uniform --keep 0.5",
    "plug": "plug M A -o O",
    "tune": "tune E -o O --data D --steps 62 --batch-size 2 --max-length 32 --lr 1e-2 --resume",
    "compare": "compare M E --tasks Q --train D --steps 11 --limit 2 -o O",
    "compare, a recipe": "compare R -o O",
    "frontier": "frontier M --tasks Q -o O --train D --steps 2 --limit 2 --text T --blocks 2 --length 16 "
    "--method uniform --keeps 0.25,0.75 --score 1 --min-gap -100",
}
QUICK = ("profile, gradot", "compress")  # of them, in `make test`
RECIPE = {
    "methods": ["uniform", "svd"], "keeps": 0.5, "steps": 2, "limit": 2, "seeds": [0],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(world, tmp_path_factory):
    """What the letters of command lines stand for, but O."""
    folder = tmp_path_factory.mktemp("places")
    text = (world / "text.txt").read_text().split()[:12_000]  # eleven batches of eight blocks of 128
    (folder / "text.txt").write_text(" ".join(text))
    found = {"M": world / "model", "E": world / "emulator", "A": world / "adapter", "D": world / "data.jsonl"}
    found |= {"Q": world / "questions.jsonl", "T": folder / "text.txt", "R": folder / "recipe.yaml"}
    recipe = RECIPE | {"model": str(found["M"]), "tasks": str(found["Q"]), "train": str(found["D"])}
    found["R"].write_text(json.dumps(recipe | {"text": str(found["T"])}))  # JSON is YAML too
    return found


@pytest.fixture(scope="module")
def undisturbed(forks, places, tmp_path_factory):
    """`undisturbed(name)` is that line, run already."""
    known = {}

    def of(name):
        if name not in known:
            here = emptied(tmp_path_factory.mktemp("line") / "here")
            words = [str((places | {"O": here / "out"}).get(word, word)) for word in LINES[name].split()]
            known[name] = Undisturbed(forks, [*words, "--force"], here)
        return known[name]

    return of


@contextmanager
def told(*about):
    """Name the seed and what else it takes to fail in the same way again."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"KILLED_SEED={SEED}", *about) from error


def check_moments(line, count):
    """Kill the run, kill those that go on from it, and let the last one end; how many were cut short."""
    cut = 0
    for number, moments in enumerate(line.moments(count, SEED)):
        line.begin(replacing=number % 2 == 1)
        with told(moments):
            for moment in moments:
                ended = line.disturb(moment)
                assert ended.code in {0, *KILLED}, ended
                cut += ended.code != 0
            line.again()
    return cut


@pytest.mark.parametrize("name", QUICK)
def test_killed_again_and_again(undisturbed, name):
    assert check_moments(undisturbed(name), FEW)


@pytest.mark.long
@pytest.mark.parametrize("name", LINES)
def test_killed_at_many_moments(undisturbed, name):
    line = undisturbed(name)
    line.check()
    assert check_moments(line, MANY) > MANY // 2


def test_what_was_killed_is_no_hindrance_to_starting_over(undisturbed, forks):
    line = undisturbed("tune")
    line.begin()
    line.disturb(Moment(event=line.events // 2))
    words = [word for word in line.words if word not in ("--resume", "--force")]
    assert forks.run(words).code == 0
    found = json.loads((line.here / "out-receipt" / "receipt.json").read_text())
    known = json.loads((line.kept / "out-receipt" / "receipt.json").read_text())
    assert (found["adapter"], found["curve"]) == (known["adapter"], known["curve"])
    assert set(tree(line.here)) == set(line.whole)


@pytest.mark.long
@pytest.mark.parametrize("name", ["compress", "plug"])
def test_killed_between_its_names_it_runs_again_unforced(undisturbed, forks, name):
    line = undisturbed(name)
    words = [word for word in line.words if word != "--force"]
    between = 0
    for event in range(line.events - 8, line.events + 1):
        line.begin()
        assert forks.run(words, Moment(event=event)).code in {0, *KILLED}
        names = {path.name for path in line.here.iterdir()}
        assert "out-receipt" in names or "out" not in names
        if "out" not in names:
            between += "out-receipt" in names
            ended = forks.run(words)
            assert ended.code == 0, ended
            assert set(tree(line.here)) == set(line.whole)
    assert between


@pytest.mark.long
class TestSigning:
    """Keys and signatures differ each time, so that what they are good for is compared."""

    @pytest.fixture
    def disturbed(self, forks, tmp_path):
        """The folders in which a line was killed just before each of its writes, and how to run it again."""
        pytest.importorskip("model_signing.signing")

        def over(words, prepare):
            def begun(name):
                prepare(folder := emptied(tmp_path / name))
                return folder, [
                    str({"O": folder / "out", "B": folder / "sent"}.get(word, word)) for word in words
                ]

            for event in range(1, forks.run(begun("whole")[1]).events + 1):
                folder, line = begun(str(event))
                assert forks.run(line, Moment(event=event)).code in KILLED
                yield folder, lambda line=line: forks.run(line)

        return over

    def test_of_keys_there_are_none_or_two_that_match(self, disturbed, world, tmp_path):
        adapter = shutil.copytree(world / "adapter", tmp_path / "adapter")
        for folder, again in disturbed(["keygen", "-o", "O"], lambda folder: None):
            private, public = folder / "out.key", folder / "out.pub"
            assert private.exists() or not public.exists()
            assert public.exists() or again().code == 0
            assert {path for path in folder.iterdir() if ".partial-" not in path.name} == {private, public}
            assert signing.sign(adapter, private) == keys.fingerprint(public)

    def test_a_bundle_has_the_old_signature_or_the_new(self, disturbed, world, tmp_path):
        old, new = (keys.keygen(tmp_path / name) for name in ("old", "new"))
        publics = {keys.fingerprint(public): public for _, public in (old, new)}

        def signed(folder):
            signing.sign(shutil.copytree(world / "adapter", folder / "sent"), old[0])

        for folder, again in disturbed(["sign", "B", "--key", str(new[0])], signed):
            swept = [path.unlink() for path in folder.rglob("*.partial-*")]
            assert len(swept) <= 1
            said = json.loads((folder / "sent" / "model.sig").read_text())
            signer = said["verificationMaterial"]["publicKey"]["hint"]
            assert signing.verify(folder / "sent", publics[signer])
            assert again().code == 0
            assert signing.verify(folder / "sent", new[1])


class TestTwoAtOnce:
    @pytest.mark.parametrize(
        "name",
        ["profile, gradot", *(pytest.param(name, marks=pytest.mark.long) for name in ("compare", "tune"))],
    )
    def test_the_second_is_refused_while_the_first_lives(self, undisturbed, forks, name):
        line = undisturbed(name)
        line.begin()
        first = forks.start(line.words, Moment(event=line.events // 2, how=signal.SIGSTOP))
        wait_until_stopped(first)
        second = forks.run(line.words)
        os.kill(first, signal.SIGCONT)
        assert forks.end(first).code == 0
        assert second.code == 2
        (said,) = sentences(second)
        assert said.startswith("Another offsite is at work in '")
        assert said.endswith("'; wait for it, or name another output.")
        assert tree(line.here) == line.whole

    @pytest.mark.long
    @pytest.mark.parametrize("name", LINES)
    def test_unplanned_one_of_them_stands(self, undisturbed, forks, name):
        line = undisturbed(name)
        line.begin()
        ends = [forks.end(pid) for pid in [forks.start(line.words) for _ in range(2)]]
        assert {ended.code for ended in ends} <= {0, 2}
        assert 0 in {ended.code for ended in ends}, ends
        assert tree(line.here) == line.whole


def wait_until_stopped(pid):
    """A process of another parent cannot be waited for."""
    while "State:\tT" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.005)


FULL = "No space is left on the disk of the output; free some, or write elsewhere."


class TestFullDisk:
    @pytest.mark.parametrize("name", ["profile, gradot", "compress"])
    def test_one_sentence_nothing_half_written_and_on_once_there_is_room(self, undisturbed, name):
        check_disks(undisturbed(name), 1)

    @pytest.mark.long
    @pytest.mark.parametrize("name", LINES)
    def test_on_disks_of_more_sizes(self, undisturbed, name):
        check_disks(undisturbed(name), 3)


def check_disks(line, count):
    """Disks that are smaller than the outputs by a random number of pages."""
    chance = random.Random(f"{SEED} {line.events}")
    pages = sum(-(-path.stat().st_size // 4096) for path in line.kept.rglob("*") if path.is_file())
    for size in [chance.randint(2, pages - 1) for _ in range(count)]:
        line.begin()
        with told(f"{size} pages"), small_disk(line.here) as mount:
            mount(f"{4 * size}k")
            ended = line.forks.run(line.words)
            assert (ended.code, sentences(ended)) == (2, [FULL]), ended
            left = [path.name for path in line.here.rglob("*")]
            assert not [name for name in left if ".partial-" in name], left
            assert all(path.name.startswith(".out.") for path in line.here.iterdir()), left
            mount("64m")
            line.again()


def sentences(ended):
    """What the command said of an error."""
    lines = ended.said.splitlines()
    return [line.removeprefix("offsite: ") for line in lines if line.startswith("offsite: ")]
