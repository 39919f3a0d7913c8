"""`python -m sagapost`: the same as the command `sagapost`."""

from sagapost.ops.cli import main

if __name__ == "__main__":
    main()
