"""`python -m offsite` is `offsite`."""

from offsite.cli import main

main()
