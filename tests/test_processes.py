"""Jobs in processes of their own: what is told of them, and what one that dies takes with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engrams.benchmarks.jobs.processes import ProcessError, in_processes

pytestmark = pytest.mark.slow


def job(name, **about):
    return SimpleNamespace(name=name, **about)


def mark_and_die(job, report):
    """Leaves a mark of when each attempt began and ended; a deadly job ends its own process."""
    report(1)
    began = time.monotonic()
    if job.deadly:
        with Path(job.marks, job.name).open("a") as marks:
            marks.write("tried\n")
        if job.deadly == "once" and Path(job.marks, job.name).read_text().count("tried") > 1:
            return "well the second time", began, time.monotonic()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return "well", began, time.monotonic()


def quiet(job, epochs):
    pass


def test_a_process_that_dies_takes_one_attempt_of_one_job_with_it(tmp_path):
    jobs = [job("a", deadly=""), job("b", deadly="once"), *(job(name, deadly="") for name in "cde")]
    for one in jobs:
        one.marks = tmp_path
    outcomes = {one.name: outcome for one, outcome in in_processes(jobs, mark_and_die, 2, quiet)}
    assert {name: outcome[0] for name, outcome in outcomes.items()} == {
        "a": "well",
        "b": "well the second time",
        "c": "well",
        "d": "well",
        "e": "well",
    }
    _, began, ended = outcomes.pop("b")
    assert not [name for name, (_, b, e) in outcomes.items() if b < ended and began < e], "it is tried again alone"


def test_a_job_that_kills_its_process_twice_is_given_up_and_the_others_go_on(tmp_path):
    jobs = [job(name, deadly="always" if name == "b" else "", marks=tmp_path) for name in "abcd"]
    outcomes = {one.name: outcome for one, outcome in in_processes(jobs, mark_and_die, 2, quiet)}
    assert sorted(outcomes) == list("abcd")
    assert (tmp_path / "b").read_text() == "tried\n" * 2
    given_up = outcomes["b"]
    assert isinstance(given_up, ProcessError)
    assert "the process of b died twice" in str(given_up)
    assert "SIGKILL (out of memory?), having held 0." in str(given_up)


def hash_of_a_text(job, report):
    return hash("cat")


def test_a_text_has_one_hash_in_every_process_of_every_command():
    """Or the order of a set, by which somebody numbers classes, is another each time."""
    command = [sys.executable, "-c", "print(hash('cat'))"]
    asked = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, check=True)
    ((_, found),) = in_processes([job("a")], hash_of_a_text, 1, quiet)
    assert found == int(asked.stdout)
    assert "PYTHONHASHSEED" not in os.environ


def environment(job, report):
    return {name: os.environ.get(name) for name in ("CHANGED", "ADDED", "REMOVED")}


def test_a_process_has_the_environment_of_the_moment_and_not_that_of_the_first_command(monkeypatch):
    """In a notebook the server of processes outlives what is set between two commands."""
    monkeypatch.setenv("CHANGED", "1")
    monkeypatch.setenv("REMOVED", "1")
    # Another test may have started the server: then it has neither.
    ((_, found),) = in_processes([job("a")], environment, 1, quiet)
    assert found == {"CHANGED": "1", "ADDED": None, "REMOVED": "1"}
    monkeypatch.setenv("CHANGED", "2")
    monkeypatch.setenv("ADDED", "2")
    monkeypatch.delenv("REMOVED")
    ((_, found),) = in_processes([job("a")], environment, 1, quiet)
    assert found == {"CHANGED": "2", "ADDED": "2", "REMOVED": None}


def unreadable():
    raise SyntaxError("unfinished")


class Unreadable(SimpleNamespace):
    def __reduce__(self):
        return unreadable, ()


def test_a_job_that_cannot_be_read_in_its_process_is_named_and_the_others_go_on():
    jobs = [Unreadable(name="a"), job("b")]
    outcomes = {one.name: outcome for one, outcome in in_processes(jobs, count, 1, quiet)}
    assert isinstance(outcomes["a"], ProcessError)
    assert str(outcomes["a"]) == "the run cannot be read there: SyntaxError: unfinished; run it again"
    assert isinstance(outcomes["b"], int)


def count(job, report):
    for epoch in range(1, 4):
        report(epoch)
    return os.getpid()


def test_what_is_told_of_a_job_comes_in_order_and_before_its_result():
    told = []
    jobs = [job(str(number)) for number in range(4)]
    results = in_processes(jobs, count, 2, lambda one, epochs: told.append((one.name, epochs)))
    for one, _ in results:
        assert [epochs for name, epochs in told if name == one.name] == [1, 2, 3]


def test_a_job_is_drawn_when_the_outcome_before_it_was_taken_in():
    taken = []

    def jobs():
        for number in range(3):
            assert len(taken) == number
            yield job(str(number))

    for one, _ in in_processes(jobs(), count, 1, quiet):
        taken.append(one.name)
    assert taken == ["0", "1", "2"]


class Picky(Exception):
    """Cannot be read back from a pickle: it takes more than it keeps."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(job, report):
    if job.name == "picky":
        raise Picky("this", "that")
    raise ValueError("a bug")


@pytest.mark.parametrize(("name", "kind", "said"), [("plain", ValueError, "a bug"), ("picky", RuntimeError, "that")])
def test_a_bug_in_a_job_is_raised_here_and_shows_where(name, kind, said):
    with pytest.raises(kind, match=said) as raised:
        list(in_processes([job(name)], fail, 1, quiet))
    assert "in fail" in str(raised.value.__cause__)


def sleep(job, report):
    report(os.getpid())
    time.sleep(60)


def test_nobody_goes_on_when_the_caller_stops():
    processes = []
    began = time.monotonic()

    class Stop(Exception):
        pass

    def advanced(one, epochs):
        if epochs:
            processes.append(epochs)
        if len(processes) == 2:
            raise Stop

    with pytest.raises(Stop):
        list(in_processes([job("a"), job("b")], sleep, 2, advanced))
    assert time.monotonic() - began < 30
    assert not [pid for pid in processes if psutil.pid_exists(pid)]


# --- what needs torch, asked by a process that has not read it --------------------------------------------------------

QUESTIONS = """
import os, signal, sys
from engrams.benchmarks.data.names import DataError

def answer(of):
    return of, os.getpid(), "torch" in sys.modules

def refuse():
    raise DataError("mine.npz: there is no such file")

def fail():
    open("/nowhere")

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
ASKED = """
import os, sys
import questions
from engrams.benchmarks.jobs import processes

def ask(function, *arguments):
    try:
        return processes.where_torch_is(function, *arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def answer(of):
    of, process, has_torch = ask(questions.answer, of)
    return of, "here" if process == os.getpid() else "elsewhere", has_torch

if __name__ == "__main__":
    print(*answer("one for it alone"))
    processes.start_server()
    print(*answer("one of the server's"))
    print(ask(questions.refuse))
    print(ask(questions.fail))
    print(ask(questions.die))
    print("torch" in sys.modules)
    sys.modules["torch"] = sys
    print(*answer("this one"))
"""


def test_a_process_without_torch_asks_one_that_has_it(tmp_path):
    (tmp_path / "questions.py").write_text(QUESTIONS)
    (tmp_path / "asks.py").write_text(ASKED)
    path = os.pathsep.join(str(Path(place).absolute()) for place in (tmp_path, *sys.path) if place)
    done = subprocess.run(
        [sys.executable, tmp_path / "asks.py"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "one for it alone elsewhere True",
        "one of the server's elsewhere True",
        "DataError: mine.npz: there is no such file",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'",
        "ProcessError: the process that looks at the data died: it was ended by SIGKILL (out of memory?)",
        "False",
        "this one here True",
    ], done.stderr
    assert not done.stderr
