"""W&B, against a stand-in for its service on loopback and in the offline files that wandb writes."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from engrams.reports import store
from engrams.reports.errors import UserError
from engrams.reports.matrix import metrics
from engrams.reports.predictions import PREDICTIONS, Predictions, write
from engrams.reports.wandb import dashboards, page, read, sending, settings
from engrams.reports.wandb import service as services
from engrams.reports.wandb.journal import record_of
from engrams.reports.wandb.sender import Job, Orders, Sender
from engrams.reports.wandb.settings import WandBSettings, resolve
from tests.test_runs import engrams
from tests.waiting import until
from tests.wandb_runs import (
    GENERATOR,
    JOINT,
    RECORDS,
    SCHOLAR,
    SOLVER,
    Screen,
    arrived,
    dumped,
    learned,
    nowhere,
    online,
    page_of,
    record_in,
    rows,
    served,
    suite,
    table_of,
    told,
    with_all,
)
from tests.wandb_service import ENTITY, KEY, Page

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone")]


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A solver, an upper bound, DGR with pictures and MeRGAN, sent once for all tests that look at what arrived."""
    folder = tmp_path_factory.mktemp("sent")
    with nowhere(folder) as temporary, served() as service:
        screen = suite(folder / "runs", [SOLVER, JOINT, SCHOLAR, GENERATOR])
        left = [path for place in (temporary, Path.home()) for path in place.rglob("*") if path.is_file()]
        secrets = KEY, str(Path.home()), str(folder), str(Path.cwd())
        yield SimpleNamespace(
            service=service, screen=screen, left=left, secrets=secrets, settings=online(), out=folder / "runs"
        )


# --- what arrives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SOLVER, JOINT, SCHOLAR, GENERATOR])
def test_what_arrives_equals_the_record(sent, name):
    record = store.read(RECORDS / name / "record.json")
    found = page_of(sent.service, name)
    assert arrived(found) == record.model_dump()
    (artifact,) = sent.service.artifacts_of(found, "record")
    assert record_in(artifact) == record
    assert table_of(found) == record.accuracy_matrix
    picture = next(body for file, body in found.files.items() if "images/accuracy_matrix_image" in file)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 3000
    assert found.state == "finished"
    assert (found.last("groupName"), found.last("jobType")) == (record.protocol, record.strategy)


def test_what_newer_records_have_arrives_as_well(service, tmp_path):
    record = with_all(store.read(RECORDS / GENERATOR / "record.json"))
    out = tmp_path / "runs"
    with told(out) as (_, runs):
        runs.advanced(GENERATOR, 0)
        write(Predictions(*(np.zeros(shape, int) for shape in (3, 3, (1, 3), 0))), out / GENERATOR)
        learned(record, out / GENERATOR)
        runs.over(GENERATOR)
    found = page_of(service, GENERATOR)
    assert arrived(found) == record.model_dump()
    (artifact,) = service.artifacts_of(found, "record")
    assert set(artifact.files) == {"record.json", PREDICTIONS}
    assert len(store.read_records(f"wandb:{ENTITY}/engrams")) == 1, "which of the files the record is, is known"


def test_one_row_an_experience_has_all_of_it_with_the_step_that_it_is_drawn_against(sent):
    assert f"W&B: 4 runs sent: {sent.service.url}/{ENTITY}/engrams" in sent.screen.text
    generator = rows(page_of(sent.service, GENERATOR))
    assert [row["experience"] for row in generator] == list(range(10))
    assert all({"ACC", "generated", "frechet_distance", "seconds"} <= set(row) for row in generator)
    assert {"generated_animation", "accuracy_matrix", "accuracy_matrix_image"} <= set(generator[-1])
    assert all("class_shares/class_09" in row for row in rows(page_of(sent.service, SCHOLAR)))
    (joint,) = rows(page_of(sent.service, JOINT))
    assert joint["experience"] == 4, "it has seen every experience"
    losses = [(row["epoch"], row["loss/training"]) for row in page_of(sent.service, SOLVER).history if "epoch" in row]
    assert losses == [(epoch, 1 / epoch) for epoch in range(1, 6)]
    assert all("experience" in row or "epoch" in row for row in page_of(sent.service, SOLVER).history)
    assert {"upper bound", "class-incremental", "joint"} <= set(page_of(sent.service, JOINT).last("tags"))


def test_nothing_of_the_machine_is_sent_and_nothing_is_left_on_it(sent):
    content = b"".join(sent.service.bodies)
    for secret in sent.secrets:
        assert secret.encode() not in content, secret
    assert not re.search(rf'"(host|commit|repo)[^"]*": *"{socket.gethostname()}', content.decode(errors="replace"))
    for found in sent.service.pages.values():
        assert (found.last("host"), found.last("commit"), found.last("repo")) == (None, None, None)
        assert not {"requirements.txt", "wandb-metadata.json", "diff.patch"} & set(found.files)
    assert not sent.left
    assert not sent.service.unknown


def test_a_final_figure_has_a_name_that_an_unfinished_run_never_has(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    failed = record.model_copy(update={"status": "failed", "reason": f"E: no (see {Path.home()}/runs/traceback.txt)"})
    failed = failed.model_copy(update={"accuracy_matrix": [], "metrics": {}})
    out = tmp_path / "runs"
    with told(out) as (_, runs):
        runs.advanced(SOLVER, 0)
        learned(record, out / SOLVER, upto=2, ended=False)
        store.write(failed, out / SOLVER)
        (out / SOLVER / "traceback.txt").write_text(f'File "{Path.home()}/x y/run.py", line 3, in f\nE: no')
        runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert [row["ACC"] for row in rows(found)] == [pytest.approx(1, abs=0.1), pytest.approx(0.5, abs=0.1)]
    assert (found.state, found.exit_code) == ("failed", 1)
    assert not {"ACC", "forgetting", "final/ACC"} & set(found.summary)
    assert found.summary["reason"] == "E: no (see …/runs/traceback.txt)"
    assert found.summary["traceback"] == 'File "…/x y/run.py", line 3, in f\nE: no'
    (artifact,) = service.artifacts_of(found, "record")
    assert record_in(artifact).reason == found.summary["reason"]
    assert str(Path.home()).encode() not in b"".join(service.bodies)


def test_a_run_repeated_is_one_page_with_each_row_once(service, tmp_path):
    suite(tmp_path / "one", [SOLVER], upto=2, ended=False)
    interrupted = page_of(service, SOLVER)
    assert (len(rows(interrupted)), interrupted.exit_code) == (2, 130), "cut short, and ended all the same"
    with told(tmp_path / "two") as (_, here), told(tmp_path / "three") as (_, there):  # two processes at once
        for out, runs in ((tmp_path / "two", here), (tmp_path / "three", there)):
            runs.advanced(SOLVER, 0)
            learned(store.read(RECORDS / SOLVER / "record.json"), out / SOLVER)
            runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert len(service.pages) == 1
    assert [row["experience"] for row in rows(found)] == [0, 1, 2, 3, 4]
    assert len(found.history) == 10
    assert found.state == "finished"
    record = store.read(RECORDS / SOLVER / "record.json")
    assert arrived(found) == record.model_dump()


def test_a_run_cut_short_says_nothing_on_a_page_that_has_all_of_it(service, tmp_path):
    suite(tmp_path / "one", [SOLVER])
    before = deepcopy(page_of(service, SOLVER))
    screen = suite(tmp_path / "two", [SOLVER], upto=2, ended=False)
    assert page_of(service, SOLVER) == before
    assert "W&B: 1 run there already: " in screen.text


def test_a_page_made_of_the_record_alone_and_the_run_done_again_are_one_page(service, tmp_path):
    out = tmp_path / "runs"
    shutil.copytree(RECORDS / SOLVER, out / SOLVER)
    assert sending.upload(online(), [out], Screen())
    assert len(page_of(service, SOLVER).history) == 5
    suite(tmp_path / "elsewhere", [SOLVER])
    found = page_of(service, SOLVER)
    assert len(service.pages) == 1
    assert [row["experience"] for row in rows(found) if "ACC" in row] == [0, 1, 2, 3, 4]
    assert [row["epoch"] for row in found.history if "epoch" in row] == [1, 2, 3, 4, 5]
    assert all("experience" in row or "epoch" in row for row in found.history)
    assert [row["_step"] for row in found.history] == list(range(len(found.history)))
    record = store.read(RECORDS / SOLVER / "record.json")
    assert arrived(found) == record.model_dump()


def test_a_run_begun_again_is_not_taken_for_what_it_said_before(service, tmp_path):
    """What an earlier try has left is there when the sender looks; and a run whose process dies is tried once more."""
    out = tmp_path / "runs"
    record = store.read(RECORDS / SOLVER / "record.json")
    learned(record, out / SOLVER, upto=1, ended=False)
    with (out / SOLVER / "wandb" / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"end": {"complete": False, "summary": {}}, "time": time.time()}) + "\n")
    with told(out) as (_, runs):
        runs.advanced(SOLVER, 0)
        time.sleep(3)  # the sender has looked
        learned(record, out / SOLVER, upto=3, ended=False)
        until(lambda: any(len(rows(found)) == 2 for found in service.pages.values()), 30)  # the third is held back
        learned(record, out / SOLVER)
        runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert len(service.pages) == 1
    assert [row["experience"] for row in rows(found)] == [0, 1, 2, 3, 4]
    assert len(found.history) == 10
    assert (found.state, found.exit_code) == ("finished", 0)
    assert arrived(found) == record.model_dump()


def test_a_run_that_began_before_the_command_arrives_whole(service, tmp_path):
    """As under SLURM, where it goes on after the command that began it; or on a machine whose clock is behind."""
    record = store.read(RECORDS / SOLVER / "record.json")
    learned(record, tmp_path / SOLVER)
    with told(tmp_path) as (_, runs):
        runs.advanced(SOLVER, 0)
        runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert arrived(found) == record.model_dump()
    assert [row["epoch"] for row in found.history if "loss/training" in row] == [1, 2, 3, 4, 5]
    assert all("seconds" in row for row in rows(found))


def test_a_record_is_a_runs_own_whatever_the_clock_of_its_disk_says(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    with told(tmp_path) as (_, runs):
        runs.advanced(SOLVER, 0)
        learned(record, tmp_path / SOLVER, ended=False)
        os.utime(store.write(record, tmp_path / SOLVER), (0, 0))
        with (tmp_path / SOLVER / "wandb" / "journal.jsonl").open("a") as file:
            end = {"complete": True, "summary": {}, "record": page.digest_of(record)}
            file.write(json.dumps({"end": end, "time": time.time()}) + "\n")
        runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert arrived(found) == record.model_dump()
    assert len(service.artifacts_of(found, "record")) == 1


def test_which_record_is_of_the_try_that_a_journal_is_of(tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    folder = tmp_path / SOLVER
    path = store.write(record, folder)
    begin, now = {"begin": {}, "time": time.time()}, time.time()
    for seconds, found in ((-10, None), (10, record)):  # it was cut short: the clocks decide
        os.utime(path, (now + seconds, now + seconds))
        assert record_of(folder, [begin]) == found
    os.utime(path, (0, 0))
    for which, found in (({"record": page.digest_of(record)}, record), ({"record": "another's"}, None), ({}, record)):
        assert record_of(folder, [begin, {"end": {"complete": True, "summary": {}, **which}}]) == found
    path.write_text(path.read_text().replace("0.9", "0.8", 1))
    with pytest.raises(store.RecordError, match="its checksum is not that of its content"):
        record_of(folder)
    path.unlink()
    assert record_of(folder) is None


def test_a_record_in_the_place_of_the_one_that_a_journal_ends_with(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    again = record.model_copy(update={"seconds": record.seconds + 1})  # done anew with W&B off
    screen = Screen()
    with told(tmp_path, screen=screen) as (_, runs):
        runs.advanced(SOLVER, 0)
        learned(record, tmp_path / SOLVER)
        store.write(again, tmp_path / SOLVER)
        runs.over(SOLVER)
    assert f"not sent: {SOLVER}: its journal ends with another record than the one that is there" in screen.text
    assert sending.upload(online(), [tmp_path], Screen())
    assert arrived(page_of(service, SOLVER)) == again.model_dump()


def test_other_figures_of_the_same_run_get_a_page_of_their_own(service, tmp_path):
    suite(tmp_path / "here", [SOLVER])
    here = page_of(service, SOLVER)
    before = json.dumps(here.history)
    here.history[1]["accuracy/exp_00"] = 0.125  # as another machine found it
    screen = suite(tmp_path / "there", [SOLVER])
    other = service.pages[f"{here.name}-2"]
    assert json.dumps(other.history, sort_keys=True) != before
    assert len(rows(other)) == 5
    assert len(service.artifacts_of(here, "record")) == len(service.artifacts_of(other, "record")) == 1
    assert f"its page {here.name} has other figures; its page has a new id" in screen.text
    assert len(store.read_records(f"wandb:{ENTITY}/engrams")) == 1, "the newer page's: no seed counts twice"


@pytest.mark.parametrize("live", [True, False])
def test_a_page_of_other_figures_stays_as_it_is(service, tmp_path, live):
    record = store.read(RECORDS / SOLVER / "record.json")
    matrix = [*record.accuracy_matrix[:-1], [0.125] * 5]  # nothing differs before the last experience
    found = {"accuracy_matrix": matrix, "metrics": metrics(matrix), "accuracy_at_initialisation": []}
    store.write(record.model_copy(update={**found, "environment": {"machine": "another"}}), tmp_path / "there" / SOLVER)
    assert sending.upload(online(), [tmp_path / "there"], Screen())
    before = deepcopy(page_of(service, SOLVER))
    if live:
        suite(tmp_path / "here", [SOLVER])
    else:
        learned(record, tmp_path / "here" / SOLVER)
        assert sending.upload(online(), [tmp_path / "here"], Screen())
    assert page_of(service, SOLVER) == before
    other = service.pages[f"{before.name}-2"]
    assert arrived(other) == record.model_dump()
    assert len(other.history) == 10


def test_a_page_that_was_deleted_gets_a_new_id_and_a_word(service, tmp_path, monkeypatch):
    name = page.introduction_of(store.read(RECORDS / SOLVER / "record.json"))["id"]
    service.deleted.add(name)
    screen = suite(tmp_path / "runs", [SOLVER])
    assert list(service.pages) == [f"{name}-2"]
    assert f"its page {name} was deleted" in screen.text
    assert screen.waited < 28


# --- a service that fails ---------------------------------------------------------------------------------------------


def test_the_bounds_are_those_that_are_promised():
    assert services.PATIENCE <= 15
    assert sending.AT_MOST + 2 <= 30


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("500", "answers with status 500"),
        ("429", "answers with status 429"),
        ("a wrong key", "refuses the API key (status 401); get one at"),
        ("403", "refuses the API key (status 403); get one at"),
        ("silent", "does not answer within 2 s"),
        ("unreachable", "cannot be reached"),
    ],
)
def test_a_service_that_is_not_there_is_found_out_once(service, tmp_path, monkeypatch, failure, said):
    monkeypatch.setattr(services, "PATIENCE", 2.0)
    if failure == "silent":
        service.silent = True
    elif failure == "unreachable":
        service.stop()
    elif failure == "a wrong key":
        monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    else:
        service.refuse = lambda what: int(failure)
    names = [SOLVER, JOINT] if failure == "silent" else []  # what is kept is the same in all of them
    screen = suite(tmp_path / "runs", names)
    assert screen.asked < 3 * 2
    assert len([line for line in screen.lines if said in line]) == 1
    first = screen.lines[0]
    assert f"Runs are kept offline; 'engrams upload {tmp_path / 'runs'}' sends them later" in first
    assert ("/authorize" in first) == ("key" in first)
    assert screen.mode == "offline"
    assert len(service.asked) <= 1
    if names:
        assert "W&B (offline): 2 runs kept" in screen.text
        kept = {found.strategy: found.model_dump() for found in read.records_of_files(tmp_path / "runs")}
        assert kept == {name.split("/")[2]: dumped(name) for name in names}


@pytest.mark.parametrize("failure", ["history", "dies", "all"])
def test_a_service_that_fails_half_way_costs_seconds_and_what_did_not_arrive_is_sent_later(
    service, tmp_path, monkeypatch, failure
):
    monkeypatch.setattr(sending, "AT_MOST", 4.0)
    if failure == "dies":
        service.dies_at_history = True
    else:
        service.refuse = lambda what: 500 if what != "Viewer" and (failure == "all" or "file_stream" in what) else None
    out = tmp_path / "runs"
    screen = suite(out, [SOLVER, JOINT])
    assert screen.waited < 3 * (4 + 2)  # a slow machine; without the bound it would be minutes
    assert f"W&B: not sent: {SOLVER}: " in screen.text
    assert f"W&B: not sent: {JOINT}: " in screen.text
    assert f"'engrams upload {out}' sends what was not sent later" in screen.text
    assert "Error" not in screen.text, "what wandb says of being cut short is no reason"
    until(lambda: not _wandb_processes(), 3)  # it was killed
    service.refuse = lambda what: None
    if failure == "dies":
        return
    assert sending.upload(online(), [out], Screen())
    for name in (SOLVER, JOINT):
        found, record = page_of(service, name), store.read(RECORDS / name / "record.json")
        assert arrived(found) == record.model_dump()
        assert found.state == "finished"


def test_a_sender_that_hangs_ends_with_wandbs_own_process(service, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "AT_MOST", 1.0)

    def hang(runs):
        until(_wandb_processes, 60)
        runs._sender.process.send_signal(signal.SIGSTOP)

    screen = suite(tmp_path / "runs", [SOLVER], then=hang)
    until(lambda: not _wandb_processes(), 3)  # it was killed
    assert f"W&B: not sent: {SOLVER}: the service did not take it in time" in screen.text


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_a_sender_that_dies_is_no_slow_service(tmp_path, how):
    screen = Screen()
    with told(tmp_path, WandBSettings("offline"), screen) as (_, runs):
        runs.advanced(SOLVER, 0)
        learned(store.read(RECORDS / SOLVER / "record.json"), tmp_path / SOLVER, upto=1, ended=False)
        if how == "killed":
            until(_wandb_processes, 60)
            runs._sender.process.kill()
        else:
            runs._sender._tell(["no command"])
    died = f"W&B: not sent: {SOLVER}: the process that sends died"
    if how == "killed":
        assert f"{died} (SIGKILL)" in screen.text
    else:
        assert f"{died} (exit status 1): AttributeError: 'list' object has no attribute 'get'" in screen.text
    until(lambda: not _wandb_processes(), 10)


def _wandb_processes():
    listed = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in listed if "wandb-core" in line and tempfile.gettempdir() in line]


def test_one_thing_that_cannot_be_logged_does_not_keep_the_rest_from_it(service, tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "a file" / "of which nothing can be made"))
    record = store.read(RECORDS / GENERATOR / "record.json")
    out = tmp_path / "runs"
    screen = Screen()
    with told(out, screen=screen) as (_, runs):
        learned(record, out / GENERATOR, ended=False)
        for picture in (out / GENERATOR / "wandb").glob("generated-0*.png"):
            picture.write_bytes(b"no picture")
        journal = out / GENERATOR / "wandb" / "journal.jsonl"
        kept = [line for line in journal.read_text().splitlines() if '"experience": 3' not in line]
        journal.write_text("\n".join([*kept[:5], '{"row": {"exp', *kept[5:]]) + "\n")
        store.write(record, out / GENERATOR)
        runs.over(GENERATOR)
    found = page_of(service, GENERATOR)
    assert f"W&B: {GENERATOR} is not whole there: cannot identify image file" in screen.text
    assert found.state == "finished"
    assert sorted(row["experience"] for row in rows(found)) == list(range(10)), "what is lacking is the record's"
    assert service.artifacts_of(found, "record")
    assert arrived(found) == record.model_dump()


def test_a_journal_that_cannot_be_written_fails_no_run_and_the_page_is_made_of_the_record(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    out = tmp_path / "runs"
    with told(out) as (_, runs):
        (out / SOLVER).mkdir(parents=True)
        (out / SOLVER / "wandb").write_text("in the way")
        with pytest.warns(UserWarning, match="W&B lacks something of a run"):
            learned(record, out / SOLVER)
        (out / SOLVER / "wandb").unlink()
        runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert arrived(found) == record.model_dump()


def test_an_interrupt_ends_the_pages(service, tmp_path):
    out = tmp_path / "runs"

    def interrupted():
        with told(out) as (_, runs):
            runs.advanced(SOLVER, 0)
            learned(store.read(RECORDS / SOLVER / "record.json"), out / SOLVER, upto=2, ended=False)
            until(lambda: any(rows(found) for found in service.pages.values()), 50)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert page_of(service, SOLVER).exit_code == 130
    assert page_of(service, SOLVER).state == "failed"


def test_stop_run_on_a_page_is_an_interrupt(service, tmp_path):
    out, screen = tmp_path / "runs", Screen()

    def goes_on():
        with told(out, screen=screen) as (_, runs):
            runs.advanced(SOLVER, 0)
            learned(store.read(RECORDS / SOLVER / "record.json"), out / SOLVER, upto=1, ended=False)
            until(lambda: service.pages, 50)
            page_of(service, SOLVER).stopped = True
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        goes_on()
    assert f"stopped on its page: {SOLVER}" in screen.text
    assert page_of(service, SOLVER).exit_code == 130


def test_what_could_not_be_sent_is_told_with_its_reason(tmp_path):
    told = io.StringIO()
    Sender(Orders("offline", "engrams"), told)._page(Job(tmp_path / "nothing here", live=False))
    (line,) = map(json.loads, told.getvalue().splitlines())
    assert line["state"] == "unsent"
    assert "neither a journal nor a record" in line["reason"]


# --- what is set ------------------------------------------------------------------------------------------------------


def test_wandbs_own_variables_hold_unless_an_option_says_otherwise(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "a-team")
    monkeypatch.setenv("WANDB_TAGS", "one,two")
    found = resolve()
    assert (found.mode, found.project, found.entity, found.tags) == ("offline", "mine", "a-team", ("one", "two"))
    found = resolve("online", project="other", entity="me", tags=["three"])
    assert (found.mode, found.project, found.entity, found.tags) == ("online", "other", "me", ("one", "two", "three"))
    assert KEY not in repr(found)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve().mode == "disabled"


def test_a_settings_file_and_a_login_on_ones_own_server_count(monkeypatch):
    folder = Path.home() / ".config" / "wandb"
    folder.mkdir(parents=True)
    (folder / "settings").write_text("[default]\nproject = ours\nentity = group\nbase_url = http://127.0.0.1:4321\n")
    (Path.home() / ".netrc").write_text(f"machine 127.0.0.1:4321\n  login user\n  password {KEY}\n")
    found = resolve("online")
    assert (found.mode, found.project, found.entity) == ("online", "ours", "group")
    assert found.address.key == KEY
    assert resolve().mode == "offline", "a login alone sends nothing"


def test_never_a_login_prompt(monkeypatch):
    found = resolve("online")
    assert (found.mode, found.address) == ("offline", None)
    assert found.word == "W&B is offline: there is no API key; set WANDB_API_KEY or run 'wandb login' first"
    assert (resolve().mode, resolve().word) == ("offline", "")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve().mode == "online"


def test_wandb_that_does_not_say_its_settings_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(settings, "PATIENCE", 0.01)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    found = resolve("online")
    assert (found.mode, found.address) == ("offline", None)
    assert found.word.startswith("W&B is offline: its settings cannot be read: wandb does not answer within")


def test_a_setting_that_wandb_does_not_take_is_named(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    found = resolve()
    assert found.mode == "disabled"
    assert found.word.startswith("W&B is off: its settings cannot be read: mode: Input should be 'online', 'off")
    shutil.copytree(RECORDS / SOLVER, tmp_path / SOLVER)
    with pytest.raises(UserError, match="W&B: its settings cannot be read: mode: Input should be"):
        sending.upload(found, [tmp_path], Screen())
    done = engrams("run", "split-digits/class", "naive", "--dry-run", "--out", tmp_path / "runs")
    assert "W&B" not in done.stdout + done.stderr, "nothing is to be sent, and nobody is asked"
    monkeypatch.setenv("WANDB_MODE", "")
    assert (resolve().mode, resolve().word) == ("online", ""), "as if it were not set"


def test_group_notes_folder_and_tags_are_the_variables(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "a group")
    monkeypatch.setenv("WANDB_NOTES", "a note")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    suite(tmp_path / "runs", [JOINT], online(tags=("mine",)))
    found = page_of(service, JOINT)
    assert (found.last("groupName"), found.last("notes")) == ("a group", "a note")
    assert "mine" in found.last("tags")
    assert list((tmp_path / "elsewhere").rglob("*.wandb"))
    assert not list((tmp_path / "runs").rglob("*.wandb"))


def test_a_folder_that_wandb_cannot_use_leaves_no_empty_page(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", "/proc")
    screen = suite(tmp_path / "runs", [JOINT])
    assert re.search(f"not sent: {JOINT}: .*'/proc/wandb'", screen.text)
    assert not service.pages


def test_statistics_of_the_system_are_taken_of_a_run_that_goes_on(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.5")  # a minute is long for a test
    with told(tmp_path) as (_, runs):
        runs.advanced(SOLVER, 0)
        learned(store.read(RECORDS / SOLVER / "record.json"), tmp_path / SOLVER, upto=1, ended=False)
        until(lambda: service.pages and page_of(service, SOLVER).events, 50)
        runs.over(SOLVER)
    found = page_of(service, SOLVER)
    assert any("system.proc.memory.rssMB" in event for event in found.events)
    assert found.last("host") is None


def test_what_is_asked_for_is_sent(service, tmp_path, monkeypatch):
    for variable in ("WANDB_X_DISABLE_META", "WANDB_X_DISABLE_MACHINE_INFO"):
        monkeypatch.setenv(variable, "false")
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "true")
    suite(tmp_path / "runs", [JOINT])
    found = page_of(service, JOINT)
    assert found.last("host") == socket.gethostname()
    assert {"requirements.txt", "wandb-metadata.json"} <= set(found.files)


def test_each_trial_of_an_agent_is_a_page_of_the_sweep(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    suite(tmp_path / "runs", [SOLVER, "split-mnist/class/ewc/1"])
    assert "trial1" in service.pages, "the page that the agent has made"
    assert len(service.pages) == 2, "a second seed has its own"
    assert {found.last("sweep") for found in service.pages.values()} == {"sweep1"}


# --- upload, and read back --------------------------------------------------------------------------------------------


def test_upload_sends_each_record_once_and_goes_on_past_a_broken_one(service, tmp_path):
    out = tmp_path / "runs"
    for name in (SOLVER, JOINT, SCHOLAR):
        (out / name).mkdir(parents=True)
        shutil.copy(RECORDS / name / "record.json", out / name)
    broken = out / "split-mnist/class/mas/0/record.json"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"protocol": "split')
    changed = out / "split-mnist/class/ewc/1/record.json"  # it has a journal, too
    learned(store.read(RECORDS / "split-mnist/class/ewc/1/record.json"), changed.parent)
    changed.write_text(changed.read_text().replace("0.9", "0.8", 1))
    screen = Screen()
    assert not sending.upload(online(), [out, shutil.copytree(RECORDS / SOLVER, tmp_path / "copy" / SOLVER)], screen)
    assert "W&B: 3 runs sent, 1 run there already: " in screen.text
    assert "not sent: split-mnist/class/mas/0" in screen.text
    assert f"not sent: split-mnist/class/ewc/1: {changed} is no record (its checksum is not that" in screen.text
    broken.unlink()
    shutil.rmtree(changed.parent)
    screen = Screen()
    assert sending.upload(online(), [out], screen)
    assert "W&B: 3 runs there already: " in screen.text
    assert len(service.pages) == 3
    for name in (SOLVER, JOINT, SCHOLAR):
        found, record = page_of(service, name), store.read(RECORDS / name / "record.json")
        assert len(found.history) == len(record.accuracy_matrix)
        assert arrived(found) == record.model_dump()
    # And back: the tables of a project are those of the folder.
    read_back = store.read_records(f"wandb:{ENTITY}/engrams")
    assert read_back == store.read_records(out)
    next(made for made in service.artifacts.values() if made.type == "record").files["record.json"] = b"{}"
    damaged = []
    assert len(store.read_records(f"wandb:{ENTITY}/engrams", damaged=damaged)) == 2
    assert "is no record" in str(damaged[0])
    with pytest.raises(store.RecordError, match="there is no project somebody/nothing"):
        store.read_records(f"wandb:{ENTITY}/nothing")


def test_upload_names_the_folders_as_they_were_given_and_finds_a_run_on_its_third_page(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    (store.write(record, tmp_path / "one" / SOLVER), (tmp_path / "two" / JOINT).mkdir(parents=True))
    (tmp_path / "two" / JOINT / "record.json").write_text("{")
    name = page.introduction_of(record)["id"]
    for taken in (name, f"{name}-2"):
        service.pages[taken] = Page(ENTITY, "engrams", taken, [{"experience": 0, "accuracy/exp_00": 0.125, "_step": 0}])
    roots = [tmp_path / "one" / SOLVER, tmp_path / "two" / JOINT]
    for said in ("1 run sent", "1 run there already"):
        screen = Screen()
        assert not sending.upload(online(), roots, screen)
        assert f"W&B: {said}: " in screen.text
        assert f"W&B: 'engrams upload {roots[0]} {roots[1]}' sends what was not sent later" in screen.text
        assert f"W&B: not sent: {roots[1]}: " in screen.text
        assert list(service.pages) == [name, f"{name}-2", f"{name}-3"]


def test_a_trial_that_leaves_no_record_is_uploaded_from_its_journal_once_it_has_ended(service, tmp_path):
    out = tmp_path / "wandb" / "search"  # and a folder of that name above is no hindrance
    record = store.read(RECORDS / SOLVER / "record.json")
    learned(record, out / JOINT, upto=2, ended=False)
    assert (out / JOINT / "wandb").exists()
    learned(record, out / SOLVER, upto=5, ended=False)
    journal = out / SOLVER / "wandb" / "journal.jsonl"
    end = {"complete": True, "summary": {"status": "complete", "final/validation_ACC": 0.5}}
    with journal.open("a") as file:
        file.write(json.dumps({"end": end, "time": time.time()}) + "\n")
    for said in ("W&B: 1 run sent: ", "W&B: 1 run there already: "):
        screen = Screen()
        assert sending.upload(online(), [out], screen)
        assert said in screen.text
    shutil.copytree(out, tmp_path / "copy")  # there is no link to what is not there any more
    (found,) = service.pages.values()
    assert found.summary["final/validation_ACC"] == 0.5
    assert len(rows(found)) == 5


def test_offline_runs_taken_to_another_machine_arrive_whole(service, tmp_path):
    suite(tmp_path / "here", [SCHOLAR], WandBSettings("offline"))
    assert not service.pages
    assert [found.model_dump() for found in store.read_records(tmp_path / "here")] == [dumped(SCHOLAR)]
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert sending.upload(online(), [tmp_path / "there"], Screen())
    found = page_of(service, SCHOLAR)
    assert len([file for file in found.files if "images/generated" in file]) == 5
    types = {artifact.type for artifact in service.artifacts.values() if artifact.committed}
    assert types == {"record", "run_table"}
    # Without the records, what W&B's own files hold is the same; one that is cut short is passed over.
    (tmp_path / "there" / SCHOLAR / "record.json").unlink()
    (file,) = (tmp_path / "there").rglob("offline-run-*/*.wandb")
    shutil.rmtree(next((tmp_path / "there").rglob("run-2*")), ignore_errors=True)
    (file.parent / "run-short.wandb").write_bytes(file.read_bytes()[:7])
    assert [found.model_dump() for found in store.read_records(tmp_path / "there")] == [dumped(SCHOLAR)]


def test_a_killed_suite_leaves_nothing_and_its_pages_are_ended(service, tmp_path, alone):
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from tests.wandb_runs import *
out = Path({str(tmp_path / "runs")!r})
with told(out) as (_, runs):
    runs.advanced(SOLVER, 0)
    learned(store.read(RECORDS / SOLVER / "record.json"), out / SOLVER, upto=2, ended=False)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        until(lambda: any(found.history for found in service.pages.values()), 50)
        process.send_signal(signal.SIGKILL)
    until(lambda: page_of(service, SOLVER).exit_code is not None, 30)
    assert page_of(service, SOLVER).exit_code == 130
    suite(tmp_path / "runs", [SOLVER])
    assert len(rows(page_of(service, SOLVER))) == 5
    assert not list(alone.glob("engrams-wandb-*"))


# --- dashboards and sweeps --------------------------------------------------------------------------------------------


def named(found, known=frozenset()):
    """Every string of a specification that stands where a metric or a key of the configuration does."""
    places = {"metrics", "mediaKeys", "xAxis", "yAxis", "groupBy", "columnOrder", "grouping", "sort"}
    if isinstance(found, dict) and found.get("name") == "tableKey":
        yield found["value"]
    if isinstance(found, dict):
        if set(found) >= {"section", "name"} and found["section"] != "run":
            yield found["name"] if found["section"] == "summary" else f"config:{found['name']}"
        for key, value in found.items():
            if key in places and key not in ("grouping", "sort"):
                for one in value if isinstance(value, list) else [value]:
                    yield f"config:{one}" if key == "groupBy" else one.removeprefix("summary:")
            yield from named(value)
    elif isinstance(found, list):
        for one in found:
            yield from named(one)


def test_every_name_in_the_dashboards_is_one_that_a_run_logs(sent):
    from wandb_workspaces.workspaces import internal

    logged = {"_step", "run:displayName", "loss/generator"}
    assert "loss/*" in page.STEPS["epoch"]
    for found in sent.service.pages.values():
        logged |= {key for row in found.history for key in row} | set(found.summary)
        logged |= {f"config:{key}.value" for key in found.config}
    made = dashboards.specification(ENTITY, "engrams")
    internal.WorkspaceViewspec.model_validate(made["workspace"])
    names = set(named(made))
    assert len(names) > 14
    assert names <= logged, names - logged


def test_dashboards_saved_twice_are_one_view_one_report_and_one_chart(sent):
    service = sent.service
    first = sending.dashboards(sent.settings)
    again = sending.dashboards(sent.settings, parity="| a board |")
    assert first == again
    assert len(first) == 2
    assert list(service.charts) == [f"{ENTITY}/{dashboards.chart()}"]
    (made,) = service.charts.values()
    assert json.loads(made["spec"]) == dashboards.heat_map()
    assert all(f'"panelDefId": "{ENTITY}/{dashboards.chart()}"' in view["spec"] for view in service.views.values())
    assert sorted(view["type"] for view in service.views.values()) == ["project-view", "runs"]
    (report,) = [view for view in service.views.values() if view["type"] == "runs"]
    assert "| a board |" in report["spec"]
    with pytest.raises(UserError, match="there is no project somebody/nothing"):
        sending.dashboards(replace(sent.settings, project="nothing"))
    service.charts.clear()
    service.refuse = lambda what: 403 if what == "CreateCustomChart" else None
    assert "the heat map of the accuracy matrices was not made" in sending.dashboards(sent.settings)[2]
    service.refuse = lambda what: None


def test_the_heat_map_draws_the_columns_of_the_table_that_runs_leave(sent):
    for name in (SOLVER, GENERATOR):
        found = page_of(sent.service, name)
        table = json.loads(next(body for file, body in found.files.items() if "table/accuracy_matrix" in file))
        fold = dashboards.heat_map()["transform"][0]
        assert set(table["columns"]) - set(fold["fold"]) == {"trained_experience"}
        assert fold["fold"][: len(table["columns"]) - 1] == table["columns"][1:]
