"""Runs that take no time: what a suite of committed records leaves and tells, as if they were being made."""

import time
from pathlib import Path

from engrams.reports import store
from engrams.reports.wandb import page, sending
from engrams.reports.wandb.journal import Journal
from engrams.reports.wandb.settings import resolve

RECORDS = Path(__file__).parents[1] / "reports" / "results" / "records"
SOLVER, JOINT = "split-mnist/class/ewc/0", "split-mnist/class/joint/0"
SCHOLAR, GENERATOR = "split-mnist/class/dgr-vae/0", "generate-mnist-reduced/mergan-ra/0"
PICTURE = RECORDS / GENERATOR / "generated.png"


class Screen:
    """What the user reads."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    remember = say

    def left_to_send(self, runs):
        pass

    @property
    def text(self):
        return "\n".join(self.lines)


def learned(record, folder, upto=None, ended=True):
    """What a run leaves while it goes on: the journal of a committed record, then the record."""
    matrix = record.accuracy_matrix
    generated = record.generated
    journal = Journal(folder, page.introduction_of(record), len(matrix) == 1)
    for index in range(len(matrix) if upto is None else upto):
        journal.after_epoch(index + 1, {"training": 1 / (index + 1)})
        seen = {"seconds": record.seconds * (index + 1) / len(matrix)}
        if generated:
            seen["generated"] = PICTURE
            if generated.class_shares:
                seen["class_shares"] = generated.class_shares[index]
            if generated.frechet_distance:
                seen["frechet_distance"] = generated.frechet_distance[index]
        journal.after_experience(None, matrix[: index + 1], seen)
    if ended:
        store.write(record, folder)
        journal.ended()


def suite(out, names, settings=None, then=lambda sender: None, screen=None, **how):
    """Runs, told of as a suite tells of them; returns what the user read, and the seconds after the last run."""
    screen = screen or Screen()
    folder_of = lambda name: out / name  # noqa: E731
    with sending.sending(settings or resolve("online"), out, screen, folder_of, lambda n, e: None) as (mode, runs):
        for name in names:
            runs.advanced(name, 0)
            learned(store.read(RECORDS / name / "record.json"), out / name, **how)
            runs.over(name)
        then(runs)
        last = time.monotonic()
    screen.mode = mode
    screen.waited = time.monotonic() - last
    return screen
