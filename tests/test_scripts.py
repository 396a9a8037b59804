"""Scripts as people write them, with our plugins put in, run as programs."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = {
    "ewc_on_digits.py": ["consolidated 5"],
    "online_stream.py": ["consolidated 3 3"],  # and each 45 samples or more of 180, in steps of 10
    "multi_head.py": ["consolidated 5"],
    "seeds_of_a_yes_or_no.py": ["consolidated 2"],
    "own_template.py": ["consolidated 2"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_ends_as_it_should(script):
    path = Path(__file__).parent / "scripts" / script
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in SCRIPTS[script]:
        assert line in done.stdout.splitlines()


def test_every_script_is_run():
    assert {path.name for path in (Path(__file__).parent / "scripts").glob("*.py")} == SCRIPTS.keys()
