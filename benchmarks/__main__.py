"""``python -m benchmarks`` in the repository; installed, it is ``engrams``."""

from engrams.benchmarks.cli.app import main

if __name__ == "__main__":
    main()
