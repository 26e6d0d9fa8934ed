"""``python -m aatc``: the command line."""

from aatc.cli import main

if __name__ == "__main__":
    main()
