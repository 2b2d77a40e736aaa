"""`python -m ptv2`, for launchers such as torchrun."""

from .cli import main

main()
