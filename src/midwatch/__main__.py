"""`python -m midwatch`: the same door as the `midwatch` command."""

from midwatch.cli import main

if __name__ == "__main__":
    main()
