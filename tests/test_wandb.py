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
from pathlib import Path

import matplotlib
import pytest

from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.training.run import Run
from engrams.reports import store
from engrams.reports.errors import UserError
from engrams.reports.wandb import page, read, sending
from engrams.reports.wandb import service as services
from engrams.reports.wandb.sender import Job, Orders, Sender
from engrams.reports.wandb.settings import resolve
from engrams.strategies import catalogue
from tests.wandb_runs import GENERATOR, JOINT, RECORDS, SCHOLAR, SOLVER, Screen, learned, suite
from tests.wandb_service import ENTITY, KEY, standing_in


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No account, no variables, an empty home, and a temporary folder of its own."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts takes long to make
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    temporary = tempfile.mkdtemp(prefix="w")  # a short path: wandb makes a socket below it
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    monkeypatch.setenv("TMPDIR", temporary)
    yield Path(temporary)
    shutil.rmtree(temporary)


@pytest.fixture
def service(monkeypatch):
    with standing_in() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield found


def page_of(service, name):
    record = store.read(RECORDS / name / "record.json")
    return service.pages[page.introduction_of(record)["id"]]


def dumped(name):
    return store.read(RECORDS / name / "record.json").model_dump()


def arrived(found):
    """The record that a page says."""
    return page.record_of(found.config, found.history, found.summary).model_dump()


def rows(found):
    return [row for row in found.history if "experience" in row]


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_what_arrives_equals_the_record(service, tmp_path, alone):
    names = [SOLVER, JOINT, SCHOLAR, GENERATOR]
    screen = suite(tmp_path / "runs", names)
    assert f"W&B: 4 runs sent: {service.url}/{ENTITY}/engrams" in screen.text
    for name in names:
        record = store.read(RECORDS / name / "record.json")
        found = page_of(service, name)
        assert arrived(found) == record.model_dump()
        (artifact,) = service.artifacts_of(found, "record")
        assert store.record_of(json.loads(artifact.files["record.json"])) == record
        table = json.loads(next(body for file, body in found.files.items() if "table/accuracy_matrix" in file))
        assert [row[1:] for row in table["data"]] == record.accuracy_matrix
        picture = next(body for file, body in found.files.items() if "images/accuracy_matrix_image" in file)
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 3000
        assert found.state == "finished"
        assert (found.last("groupName"), found.last("jobType")) == (record.protocol, record.strategy)
    # One row an experience that has all of it, with the step that it is drawn against.
    generator = rows(page_of(service, GENERATOR))
    assert [row["experience"] for row in generator] == list(range(10))
    assert all({"ACC", "generated", "frechet_distance", "seconds"} <= set(row) for row in generator)
    assert all("class_shares/class_09" in row for row in rows(page_of(service, SCHOLAR)))
    (joint,) = rows(page_of(service, JOINT))
    assert joint["experience"] == 4, "it has seen every experience"
    losses = [(row["epoch"], row["loss/training"]) for row in page_of(service, SOLVER).history if "epoch" in row]
    assert losses == [(epoch, 1 / epoch) for epoch in range(1, 6)]
    assert all("experience" in row or "epoch" in row for row in page_of(service, SOLVER).history)
    assert {"upper bound", "class-incremental", "joint"} <= set(page_of(service, JOINT).last("tags"))
    # Nothing of the machine is sent, and nothing is left on it.
    sent = b"".join(service.bodies)
    for secret in (KEY, str(Path.home()), str(tmp_path), str(Path.cwd())):
        assert secret.encode() not in sent, secret
    assert not re.search(rf'"(host|commit|repo)[^"]*": *"{socket.gethostname()}', sent.decode(errors="replace"))
    for found in service.pages.values():
        assert (found.last("host"), found.last("commit"), found.last("repo")) == (None, None, None)
        assert not {"requirements.txt", "wandb-metadata.json", "diff.patch"} & set(found.files)
    assert not list(alone.iterdir())
    assert not [path for path in Path.home().rglob("*") if path.is_file()]
    assert not service.unknown


def test_a_final_figure_has_a_name_that_an_unfinished_run_never_has(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    failed = record.model_copy(update={"status": "failed", "reason": "E: no (see /home/me/runs/traceback.txt)"})
    failed = failed.model_copy(update={"accuracy_matrix": [], "metrics": {}})
    out = tmp_path / "runs"
    screen = Screen()
    with sending.sending(resolve("online"), out, screen, lambda n: out / n, lambda n, e: None) as (_, runs):
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


def test_a_run_repeated_is_one_page_with_each_row_once(service, tmp_path):
    suite(tmp_path / "one", [SOLVER], upto=2, ended=False)
    interrupted = page_of(service, SOLVER)
    assert (len(rows(interrupted)), interrupted.exit_code) == (2, 130), "cut short, and ended all the same"
    suite(tmp_path / "two", [SOLVER])
    suite(tmp_path / "three", [SOLVER])
    found = page_of(service, SOLVER)
    assert len(service.pages) == 1
    assert [row["experience"] for row in rows(found)] == [0, 1, 2, 3, 4]
    assert len(found.history) == 10
    assert found.state == "finished"
    record = store.read(RECORDS / SOLVER / "record.json")
    assert arrived(found) == record.model_dump()


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


def test_a_page_that_was_deleted_gets_a_new_id_and_a_word(service, tmp_path, monkeypatch):
    name = page.introduction_of(store.read(RECORDS / SOLVER / "record.json"))["id"]
    service.deleted.add(name)
    screen = suite(tmp_path / "runs", [SOLVER])
    assert list(service.pages) == [f"{name}-2"]
    assert f"its page {name} was deleted" in screen.text
    assert screen.waited < 28


# --- a service that fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sending, "AT_MOST", 5.0)
    monkeypatch.setattr(services, "PATIENCE", 2.0)


def test_the_bounds_are_those_that_are_promised():
    assert services.PATIENCE <= 15
    assert sending.AT_MOST + 2 <= 30


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("500", "answers with status 500"),
        ("429", "answers with status 429"),
        ("401", "refuses the API key"),
        ("403", "refuses the API key"),
        ("silent", "does not answer within 2 s"),
        ("unreachable", "cannot be reached"),
    ],
)
def test_a_service_that_is_not_there_is_found_out_once(service, tmp_path, impatient, failure, said):
    if failure == "silent":
        service.silent = True
    elif failure == "unreachable":
        service.stop()
    else:
        service.refuse = lambda what: int(failure)
    began = time.monotonic()
    screen = suite(tmp_path / "runs", [SOLVER, JOINT])
    assert time.monotonic() - began < 40
    assert len([line for line in screen.lines if said in line]) == 1
    first = screen.lines[0]
    assert f"Runs are kept offline; 'engrams upload {tmp_path / 'runs'}' sends them later" in first
    assert ("/authorize" in first) == (failure in ("401", "403"))
    assert screen.mode == "offline"
    assert "W&B (offline): 2 runs kept" in screen.text
    kept = {found.strategy: found.model_dump() for found in read.records_of_files(tmp_path / "runs")}
    assert kept == {name.split("/")[2]: dumped(name) for name in (SOLVER, JOINT)}


def test_a_wrong_key_is_found_out(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    screen = suite(tmp_path / "runs", [JOINT])
    assert "refuses the API key (status 401); get one at" in screen.lines[0]
    assert screen.mode == "offline"


@pytest.mark.parametrize("failure", ["history", "dies", "all"])
def test_a_service_that_fails_half_way_costs_seconds_and_what_did_not_arrive_is_sent_later(
    service, tmp_path, impatient, failure
):
    if failure == "dies":
        service.dies_at_history = True
    else:
        service.refuse = lambda what: 500 if what != "Viewer" and (failure == "all" or "file_stream" in what) else None
    out = tmp_path / "runs"
    screen = suite(out, [SOLVER, JOINT])
    assert screen.waited < 5 + 3
    assert f"W&B: not sent: {SOLVER}: " in screen.text
    assert f"W&B: not sent: {JOINT}: " in screen.text
    assert f"'engrams upload {out}' sends what was not sent later" in screen.text
    assert not _wandb_processes(out)
    service.refuse = lambda what: None
    if failure == "dies":
        return
    assert sending.upload(resolve("online"), [out], Screen())
    for name in (SOLVER, JOINT):
        found, record = page_of(service, name), store.read(RECORDS / name / "record.json")
        assert arrived(found) == record.model_dump()
        assert found.state == "finished"


def _wandb_processes(out):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if "wandb-core" in line and tempfile.gettempdir() in line]


def test_one_thing_that_cannot_be_logged_does_not_keep_the_rest_from_it(service, tmp_path, monkeypatch):
    record = store.read(RECORDS / GENERATOR / "record.json")
    out = tmp_path / "runs"
    with sending.sending(resolve("online"), out, Screen(), lambda n: out / n, lambda n, e: None) as (_, runs):
        learned(record, out / GENERATOR, ended=False)
        for picture in (out / GENERATOR / "wandb").glob("generated-0*.png"):
            picture.write_bytes(b"no picture")
        journal = out / GENERATOR / "wandb" / "journal.jsonl"
        kept = [line for line in journal.read_text().splitlines() if '"experience": 3' not in line]
        journal.write_text("\n".join([*kept[:5], '{"row": {"exp', *kept[5:]]) + "\n")
        store.write(record, out / GENERATOR)
        runs.over(GENERATOR)
    found = page_of(service, GENERATOR)
    assert found.state == "finished"
    assert sorted(row["experience"] for row in rows(found)) == list(range(10)), "what is lacking is the record's"
    assert service.artifacts_of(found, "record")
    assert arrived(found) == record.model_dump()


def test_a_journal_that_cannot_be_written_fails_no_run_and_the_page_is_made_of_the_record(service, tmp_path):
    record = store.read(RECORDS / SOLVER / "record.json")
    out = tmp_path / "runs"
    with sending.sending(resolve("online"), out, Screen(), lambda n: out / n, lambda n, e: None) as (_, runs):
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
    screen = Screen()

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite(out, [SOLVER], then=interrupted, screen=screen, upto=2, ended=False)
    assert page_of(service, SOLVER).exit_code == 130
    assert page_of(service, SOLVER).state == "failed"


def test_stop_run_on_a_page_is_an_interrupt(service, tmp_path):
    out, screen = tmp_path / "runs", Screen()

    def goes_on():
        with sending.sending(resolve("online"), out, screen, lambda n: out / n, lambda n, e: None) as (_, runs):
            runs.advanced(SOLVER, 0)
            learned(store.read(RECORDS / SOLVER / "record.json"), out / SOLVER, upto=1, ended=False)
            while not service.pages:
                time.sleep(0.05)
            page_of(service, SOLVER).stopped = True
            time.sleep(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        goes_on()
    assert time.monotonic() - began < 60
    assert f"stopped on its page: {SOLVER}" in screen.text
    assert page_of(service, SOLVER).exit_code == 130


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
    with pytest.warns(UserWarning, match="W&B is offline: no API key"):
        assert resolve("online").mode == "offline"
    assert resolve().mode == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve().mode == "online"


def test_group_notes_folder_and_tags_are_the_variables(service, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "a group")
    monkeypatch.setenv("WANDB_NOTES", "a note")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    suite(tmp_path / "runs", [JOINT], resolve("online", tags=["mine"]))
    found = page_of(service, JOINT)
    assert (found.last("groupName"), found.last("notes")) == ("a group", "a note")
    assert "mine" in found.last("tags")
    assert list((tmp_path / "elsewhere").rglob("*.wandb"))
    assert not list((tmp_path / "runs").rglob("*.wandb"))


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
    screen = Screen()
    assert not sending.upload(resolve("online"), [out], screen)
    assert "3 runs sent" in screen.text
    assert "not sent: split-mnist/class/mas/0" in screen.text
    broken.unlink()
    screen = Screen()
    assert sending.upload(resolve("online"), [out], screen)
    assert "3 of which were there already" in screen.text
    assert len(service.pages) == 3
    for name in (SOLVER, JOINT, SCHOLAR):
        found, record = page_of(service, name), store.read(RECORDS / name / "record.json")
        assert len(found.history) == len(record.accuracy_matrix)
        assert arrived(found) == record.model_dump()
    # And back: the tables of a project are those of the folder.
    read_back = store.read_records(f"wandb:{ENTITY}/engrams")
    assert read_back == store.read_records(out)
    with pytest.raises(store.RecordError, match="there is no project somebody/nothing"):
        store.read_records(f"wandb:{ENTITY}/nothing")


def test_offline_runs_taken_to_another_machine_arrive_whole(service, tmp_path):
    suite(tmp_path / "here", [SCHOLAR], resolve("offline"))
    assert not service.pages
    assert [found.model_dump() for found in store.read_records(tmp_path / "here")] == [dumped(SCHOLAR)]
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert sending.upload(resolve("online"), [tmp_path / "there"], Screen())
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
with sending.sending(resolve("online"), out, Screen(), lambda n: out / n, lambda n, e: None) as (_, runs):
    runs.advanced(SOLVER, 0)
    learned(store.read(RECORDS / SOLVER / "record.json"), out / SOLVER, upto=2, ended=False)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 50
        while not any(found.history for found in service.pages.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 12
    while page_of(service, SOLVER).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert page_of(service, SOLVER).exit_code == 130
    suite(tmp_path / "runs", [SOLVER])
    assert len(rows(page_of(service, SOLVER))) == 5
    assert not list(alone.glob("engrams-wandb-*"))


# --- dashboards and sweeps --------------------------------------------------------------------------------------------


def named(found, known=frozenset()):
    """Every string of a specification that stands where a metric or a key of the configuration does."""
    places = {"metrics", "mediaKeys", "xAxis", "yAxis", "groupBy", "columnOrder", "grouping", "sort"}
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


def test_every_name_in_the_dashboards_is_one_that_a_run_logs(service, tmp_path):
    from wandb_workspaces.workspaces import internal

    from engrams.reports.wandb import dashboards

    suite(tmp_path / "runs", [SCHOLAR, GENERATOR])
    logged = {"_step", "run:displayName", "generated_animation", "loss/generator"}
    assert {"generated_animation", "loss/*"} <= {name for names in page.STEPS.values() for name in names}
    for found in service.pages.values():
        logged |= {key for row in found.history for key in row} | set(found.summary)
        logged |= {f"config:{key}.value" for key in found.config}
    made = dashboards.specification(ENTITY, "engrams")
    internal.WorkspaceViewspec.model_validate(made["workspace"])
    names = set(named(made))
    assert len(names) > 14
    assert names <= logged, names - logged


def test_dashboards_saved_twice_are_one_view_and_one_report(service, tmp_path):
    suite(tmp_path / "runs", [JOINT])
    first = sending.dashboards(resolve("online"))
    again = sending.dashboards(resolve("online"), parity="| a board |")
    assert first == again
    assert sorted(view["type"] for view in service.views.values()) == ["project-view", "runs"]
    (report,) = [view for view in service.views.values() if view["type"] == "runs"]
    assert "| a board |" in report["spec"]
    with pytest.raises(UserError, match="there is no project somebody/nothing"):
        sending.dashboards(resolve("online", project="nothing"))


def test_the_command_line_prints_dashboards_and_a_sweep_for_every_range(capsys):
    import yaml

    from engrams.benchmarks.cli.options import settings_of
    from engrams.reports.wandb.sweeps import sweep_of

    command_line(["dashboards", "--dry-run", "--entity", "me"])
    assert set(json.loads(capsys.readouterr().out)) == {"workspace", "report"}
    command_line(["sweep", "split-digits/task", "ewc"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["command"][-2:] == ["--set", "${args_json}"]
    assert settings_of(['{"ewc_lambda": 12.5}']) == {"ewc_lambda": 12.5}
    searched = {name: entry for name in catalogue.CATALOGUE if (entry := catalogue.get(name)).search}
    assert len(searched) > 8
    for name, entry in searched.items():
        made = sweep_of("split-digits/task", name, {key: (s.low, s.high) for key, s in entry.search.items()})
        assert set(made["parameters"]) <= set(entry.hyperparameters.model_fields)


def command_line(arguments):
    from engrams.benchmarks.cli import app, wandb  # noqa: F401

    with pytest.raises(SystemExit) as stopped:
        app.app(arguments)
    assert not stopped.value.code


# --- real runs --------------------------------------------------------------------------------------------------------


def test_a_real_run_leaves_a_journal_of_what_it_did(tmp_path):
    entry = registry.get("split-digits/class")
    strategy = catalogue.get("noise-replay")
    run = Run(entry, strategy, 0, entry.hyperparameters_of(strategy))
    record = execute(run, tmp_path, "cpu", "offline", lambda epochs: None)
    lines = [json.loads(line) for line in (run.folder(tmp_path) / "wandb" / "journal.jsonl").read_text().splitlines()]
    config = lines[0]["begin"]["config"]
    assert config["about"]["title"] == entry.title
    assert config["about"]["engrams"]["version"]
    assert config["strategy"] == record.hyperparameters["strategy"]
    written = [line["row"] for line in lines if "row" in line]
    experiences = [row for row in written if "experience" in row]
    assert [row["experience"] for row in experiences] == [0, 1, 2, 3, 4]
    assert experiences[-1]["seconds"] <= record.seconds
    assert [row["class_shares/class_03"] for row in experiences] == [s[3] for s in record.generated.class_shares]
    assert all(Path(run.folder(tmp_path), "wandb", row["generated"]["picture"]).exists() for row in experiences)
    losses = [row["loss/training"] for row in written if "epoch" in row]
    assert len(losses) == 5 * entry.training.epochs
    assert losses[0] > losses[entry.training.epochs - 1] > 0
    assert lines[-1]["end"] == {"complete": True, "summary": {}}


def test_the_command_line_sends_what_it_runs(service, tmp_path):
    arguments = ["run", "split-digits/task", "naive", "--seeds", "1", "--out", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (found,) = service.pages.values()
    assert f"W&B: 1 run sent: {service.url}/{ENTITY}/engrams/runs/{found.name}" in done.stdout.splitlines()[-1]
    assert found.config["about"]["command"].startswith("engrams run split-digits/task naive --seeds 1 --out …/")
    assert "Loaded credentials" not in done.stdout + done.stderr
    record = store.read(tmp_path / "runs" / "split-digits/task/naive/0/record.json")
    assert arrived(found) == record.model_dump()


def test_what_could_not_be_sent_is_told_with_its_reason(tmp_path):
    told = io.StringIO()
    Sender(Orders("offline", "engrams"), told)._page(Job(tmp_path / "nothing here", live=False))
    (line,) = map(json.loads, told.getvalue().splitlines())
    assert line["state"] == "unsent"
    assert "neither a journal nor a record" in line["reason"]
