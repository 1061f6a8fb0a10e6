"""`python -m forklight` is the console script `forklight`."""

from forklight.cli import main

if __name__ == "__main__":
    main()
