"""What is run: protocols, data, training and judging, and the command line that starts it all."""

import sys

if __name__ == "benchmarks":  # python -m benchmarks in the repository: one package, under its one name
    import engrams.benchmarks

    sys.modules[__name__] = engrams.benchmarks
