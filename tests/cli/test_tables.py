"""Tables of scores fit on a screen of 80 columns."""

from __future__ import annotations

from dataclasses import asdict, replace

from rich.console import Console

from offsite.cli.tables import rows_tables
from tests.results.rows import five


def test_five_rows_with_every_measure_fit_on_a_narrow_screen():
    scores = {row: replace(tasks["t"], acc_norm=0.5, acc_norm_stderr=0.03) for row, tasks in five().items()}
    screen = Console(width=80)
    with screen.capture() as shown:
        screen.print(*rows_tables({row: {"arc_challenge": asdict(each)} for row, each in scores.items()}))
    assert "…" not in shown.get()
    assert "Emulator zero-shot" in shown.get()
    plugged = next(line for line in shown.get().splitlines() if "Plugged in" in line)
    assert plugged.split()[-1] == "200"
