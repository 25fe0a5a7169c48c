"""`python -m ragjax` is `ragjax`."""

from ragjax.cli import main

main()
