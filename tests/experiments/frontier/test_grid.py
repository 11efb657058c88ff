"""What a frontier varies."""

from __future__ import annotations

import pytest

from offsite.errors import UserError
from offsite.experiments.frontier.grid import Grid, in_words, parse_keeps, parse_split
from offsite.model.split import Split
from offsite.owner.methods import METHODS, before

SPLIT = Split(2, 2)


class TestGrid:
    @pytest.mark.parametrize("name", METHODS)
    def test_every_method_has_a_usual_grid(self, name):
        settings = Grid([name]).settings()
        assert len(settings) >= 4
        assert ("keep" in settings[0]) == any(method.budgeted for method in Grid([name]).of(settings[0]))
        assert len({str(point) for point in settings}) == len(settings)

    def test_all_that_is_varied_is_multiplied_out_once(self):
        grid = Grid(
            ["gradot"], ["ranks=0.5"], {"lambda_channels": ["0", "0.1"]}, [0.5, 0.6, 0.5], [SPLIT, Split(1, 3)]
        )
        settings = grid.settings()
        assert len(settings) == 2 * 2 * 2
        assert settings[0] == {"keep": 0.5, "split": "2+2", "lambda_channels": 0.0}
        (method,) = grid.of(settings[-1])
        assert (method.ranks, method.lambda_channels) == (0.5, 0.1)

    def test_alpha_decides_instead_of_keep(self):
        settings = Grid(["scaleot"], varied={"alpha": ["0.2"]}).settings()
        assert settings == [{"alpha": 0.2, "beta": beta} for beta in (0.6, 0.8, 1.0)]
        settings = Grid(["scaleot"], keeps=[0.6]).settings()
        assert settings == [{"keep": 0.6}]
        settings = Grid(["scaleot"], ["alpha=0.3", "beta=1"]).settings()
        assert settings == [{}]

    def test_a_chain_varies_keep_and_what_it_is_told_to(self):
        settings = Grid(["scaleot", "gradot"], ["alpha=0.25"], {"beta": ["1"]}, [0.6]).settings()
        assert settings == [{"keep": 0.6, "beta": 1.0}]

    def test_knobs_of_a_profile_stay(self):
        grid = Grid(["crash"], before={"crash": {"share": False}})
        assert not grid.of({"keep": 0.5})[0].share
        assert before(["scaleot", "gradot"], 3, []) == {"scaleot": {"seed": 3}, "gradot": {}}

    @pytest.mark.parametrize(
        ("grid", "said"),
        [
            (Grid(["scaleot"], varied={"alpha": ["0.2"]}, keeps=[0.5]), "leave --keeps out"),
            (Grid(["src"], keeps=[0.5]), "leave --keeps out"),
            (Grid(["gradot"], keeps=[1.5]), "up to 1, not 1.5"),
            (Grid(["gradot"], varied={"lamda_channels": ["1"]}), "did you mean 'lambda_channels'"),
            (Grid(["src"], varied={"beta": ["2"]}), "not 2"),
            (Grid(["grado"]), "did you mean 'gradot'"),
        ],
    )
    def test_what_no_method_can_be_set_to_is_refused(self, grid, said):
        with pytest.raises(UserError, match=said):
            grid.settings()

    def test_words(self):
        assert parse_split("1+3") == Split(1, 3)
        assert parse_keeps(["0.5", "1"]) == [0.5, 1.0]
        assert in_words({"keep": 0.7, "split": "1+3", "share": False}) == "keep 0.7, split 1+3, share False"
        for wrong in ("2", "2-2", "a+b", "+2"):
            with pytest.raises(UserError, match="is written as 2"):
                parse_split(wrong)
        with pytest.raises(UserError, match=r"'0\.5, half' is not"):
            parse_keeps(["0.5", "half"])
