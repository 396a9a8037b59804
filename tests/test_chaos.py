"""What ``make chaos`` does, in small."""

import random

from tests import chaos


def test_ten_kills_lose_nothing(tmp_path):
    kinds = ["worker"] * 8 + ["command", "everything"]  # a command takes seconds to begin, a worker does not
    chaos.run(kinds, "permuted-digits", ("naive", "ewc", "replay", "dgr-vae"), random.randrange(1_000_000), tmp_path)
