"""Scripts as people write them, with our plugins put in, run as programs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = {
    "ewc_on_digits.py": ["consolidated 5"],
    "online_stream.py": ["consolidated 3 3"],  # and each 45 samples or more of 180, in steps of 10
    "multi_head.py": ["consolidated 5"],
    "seeds_of_a_yes_or_no.py": ["consolidated 2"],
    "own_template.py": ["consolidated 2"],
}
FOLDER = Path(__file__).parent / "scripts"
PROGRAMS = """
import os, runpy, signal, sys, traceback
import avalanche.training  # takes longer than any of them: once for all

for script, said in zip(sys.argv[1::2], sys.argv[2::2]):
    if not os.fork():
        out = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv, sys.path[0] = [script], os.path.dirname(script)
        signal.alarm(300)  # a script that hangs ends, and is named
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
        sys.exit()
    _, status = os.wait()
    print(os.path.basename(script), os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Script -> its exit status and what it said. Each is a process of its own."""
    folder = tmp_path_factory.mktemp("scripts")
    arguments = [str(path) for name in SCRIPTS for path in (FOLDER / name, folder / name)]
    done = subprocess.run([sys.executable, "-c", PROGRAMS, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    codes = dict(line.split() for line in done.stdout.splitlines())
    return {name: (int(codes[name]), (folder / name).read_text()) for name in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_ends_as_it_should(ended, script):
    code, said = ended[script]
    assert code == 0, said[-3000:]
    for line in SCRIPTS[script]:
        assert line in said.splitlines()


def test_every_script_is_run():
    assert {path.name for path in FOLDER.glob("*.py")} == SCRIPTS.keys()
