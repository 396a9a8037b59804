"""Runs that take no time: what a suite of committed records leaves and tells, as if they were being made."""

import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from multiprocessing.util import get_temp_dir
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from engrams.reports import store
from engrams.reports.costs import Costs
from engrams.reports.privacy import Nearness, Privacy
from engrams.reports.wandb import page, sending
from engrams.reports.wandb.journal import Journal
from engrams.reports.wandb.settings import Address, WandBSettings
from tests.wandb_service import KEY, standing_in

RECORDS = Path(__file__).parents[1] / "reports" / "results" / "records"
SOLVER, JOINT = "split-mnist/class/ewc/0", "split-mnist/class/joint/0"
SCHOLAR, GENERATOR = "split-mnist/class/dgr-vae/0", "generate-mnist-reduced/mergan-ra/0"
PICTURE = RECORDS / GENERATOR / "generated.png"


def online(**more):
    """What ``settings.resolve("online")`` finds, without asking wandb for it."""
    url = os.environ["WANDB_BASE_URL"]
    return WandBSettings("online", address=Address(url, url, os.environ["WANDB_API_KEY"]), **more)


@contextmanager
def nowhere(folder):
    """No account, no variables, an empty home, and a temporary folder of its own."""
    get_temp_dir()  # the processes of later tests have their socket in it too
    with pytest.MonkeyPatch.context() as patched:
        for name in list(os.environ):
            if name.startswith("WANDB_"):
                patched.delenv(name)
        patched.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts takes long to make
        home = folder / "home"
        home.mkdir()
        patched.setenv("HOME", str(home))
        temporary = tempfile.mkdtemp(prefix="w")  # a short path: wandb makes a socket below it
        patched.setattr(tempfile, "tempdir", temporary)
        patched.setenv("TMPDIR", temporary)
        yield Path(temporary)
        shutil.rmtree(temporary)


@contextmanager
def served():
    with standing_in() as found, pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_BASE_URL", found.url)
        patched.setenv("WANDB_API_KEY", KEY)
        yield found


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


def with_all(record):
    """A committed record of a generator with all that newer ones have."""
    near = Nearness(
        to_training=0.5, to_test=0.75, test_to_training=0.25, closer=0.1, copying=-1 / 3, copying_interval=(-0.5, 0.1)
    )
    generated = record.generated.model_copy(
        update={
            "frechet_by_class": [[1 / 3, None], [2.0, 0.1]],
            "reverse_by_class": [[0.5, None], [2 / 3, 0.25]],
            "precision": [None, 1 / 7],
            "recall": [None, 0.5],
            "privacy": Privacy(images=7, pixels=near, features=near.model_copy(update={"copying": None})),
        }
    )
    costs = Costs(
        processor_seconds=1 / 3,
        peak_memory=2**33,
        bytes={"model": 8, "previous solver": 2**34},
        operations={"training": 2**60},
        steps={"training": 3},
    )
    return record.model_copy(update={"generated": generated, "costs": costs, "undefined": {"FWT": "because"}})


def learned(record, folder, upto=None, ended=True):
    """What a run leaves while it goes on: the journal of a committed record, then the record."""
    matrix = record.accuracy_matrix
    generated = record.generated
    known = record.model_dump()
    known["environment"] = {key: value for key, value in known["environment"].items() if key != "threads"}
    journal = Journal(folder, page.introduction(known), len(matrix) == 1)  # the rest shows in the end
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
        if generated and generated.frechet_distance:
            journal.animation(gif(folder))
        store.write(record, folder)
        journal.ended(record=record)


def gif(folder):
    path = folder / "generated.gif"
    with Image.open(PICTURE) as picture:
        picture.save(path, save_all=True, append_images=[picture.rotate(180)])
    return path


def told(out, settings=None, screen=None):
    """The block in which runs are sent, each by the name of its folder."""
    return sending.sending(settings or online(), out, screen or Screen(), lambda n: out / n, lambda n, e: None)


def suite(out, names, settings=None, then=lambda sender: None, screen=None, **how):
    """Runs, told of as a suite tells of them; returns what the user read, and the seconds before and after the runs."""
    screen = screen or Screen()
    began = time.monotonic()
    with told(out, settings, screen) as (mode, runs):
        screen.asked = time.monotonic() - began
        for name in names:
            runs.advanced(name, 0)
            learned(store.read(RECORDS / name / "record.json"), out / name, **how)
            runs.over(name)
        then(runs)
        last = time.monotonic()
    screen.mode = mode
    screen.waited = time.monotonic() - last
    return screen


# --- what arrived -----------------------------------------------------------------------------------------------------


def page_of(service, name):
    record = store.read(RECORDS / name / "record.json")
    return service.pages[page.introduction_of(record)["id"]]


def dumped(name):
    return store.read(RECORDS / name / "record.json").model_dump()


def arrived(found):
    """The record that a page says."""
    return page.record_of(found.config, found.history, found.summary).model_dump()


def record_in(artifact):
    return store.record_of(json.loads(artifact.files["record.json"]))


def rows(found):
    return [row for row in found.history if "experience" in row]


def table_of(found):
    table = json.loads(next(body for file, body in found.files.items() if "table/accuracy_matrix" in file))
    return [row[1:] for row in table["data"]]
