"""What the tests of numbers stand on."""

from tests.report.conftest import results as results
