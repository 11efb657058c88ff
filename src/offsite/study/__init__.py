"""The papers' experiment: several methods, budgets, tasks and seeds from one recipe file."""

from __future__ import annotations

from offsite.study.recipe import Recipe, read
from offsite.study.run import run
from offsite.study.tables import Table, tabulate

__all__ = ["Recipe", "Table", "read", "run", "tabulate"]
