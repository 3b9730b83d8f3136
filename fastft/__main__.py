"""`python -m fastft` is the same program as `fastft`."""

from fastft.cli import main

main()
