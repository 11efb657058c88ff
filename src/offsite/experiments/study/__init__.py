"""The papers' experiment: several methods, budgets, tasks and seeds from one recipe file."""

from __future__ import annotations

from offsite.experiments.study.recipe import Recipe, read
from offsite.experiments.study.run import run
from offsite.experiments.study.tables import StudyTable, tabulate

__all__ = ["Recipe", "StudyTable", "read", "run", "tabulate"]
