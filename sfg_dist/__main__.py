"""``python -m sfg_dist``, and the ``sfg`` command: the command line, with the user's files off the search path."""

from sfg_dist.job.search_path import clean


def main() -> None:
    """Entry point of the console script."""
    clean()  # before the libraries are imported
    from sfg_dist.cli.main import main as start

    start()


if __name__ == "__main__":
    main()
