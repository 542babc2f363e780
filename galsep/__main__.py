"""``python -m galsep``: the same as the command ``galsep``."""

if __name__ == "__main__":
    # Inside the guard: worker processes import this module again and need no command line.
    from galsep.cli.main import run

    run()
