"""What ``make chaos`` does, in small."""

import random

import pytest

from tests import chaos

pytestmark = pytest.mark.slow


def test_five_kills_lose_nothing(tmp_path):
    kinds = ["worker"] * 3 + ["command", "everything"]  # a command takes ten seconds to begin, a worker does not
    chaos.run(kinds, "permuted-digits", ("naive", "ewc", "replay", "dgr-vae"), random.randrange(1_000_000), tmp_path)
