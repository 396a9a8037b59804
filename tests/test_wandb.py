"""What an offline W&B run holds, read back from the files that wandb wrote."""

import json
import os
import subprocess
import sys
import time

import pytest
from wandb.proto import wandb_internal_pb2

from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.protocols import registry as protocol
from engrams.reports.matrix import METRICS
from engrams.reports.wandb import logger as wandb_logger
from tests.test_generation import SMALL

SPLIT_DIGITS = protocol.get("split-digits/task")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished offline run: its record, its folder and everything in its .wandb file."""
    return offline_run("ewc", tmp_path_factory.mktemp("runs"))


def offline_run(strategy, out, entry=SPLIT_DIGITS):
    run = run_of(entry, strategy, 0)
    record = execute(run, out, "cpu", "offline", lambda epochs: None)
    (path,) = run.folder(out).rglob("*.wandb")
    for _ in range(100):  # W&B's own process may write its last lines after the run was told that it is over
        found = list(messages(path))
        if any(message.HasField("exit") for message in found):
            break
        time.sleep(0.1)
    return run, record, path, found


def messages(path):
    """The messages of a .wandb file: LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB hold chunks: checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last), data.
    """
    content, at, parts = path.read_bytes(), 7, []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            message = wandb_internal_pb2.Record()
            message.ParseFromString(b"".join(parts))
            parts = []
            yield message


def items(entries):
    return {"/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}


def test_identity_and_config(finished):
    run, _, _, found = finished
    (page,) = [m.run for m in found if m.HasField("run")][:1]
    assert (page.project, page.run_group, page.job_type) == ("engrams", "split-digits/task", "ewc")
    config = {}
    for message in found:
        if message.HasField("run"):
            config |= {update.key: json.loads(update.value_json) for update in message.run.config.update}
        if message.HasField("config"):
            config |= {update.key: json.loads(update.value_json) for update in message.config.update}
    assert config["seed"] == 0
    assert config["strategy"]["ewc_lambda"] == run.hyperparameters.ewc_lambda
    assert config["training"]["epochs"] == 10
    assert config["environment"]["versions"]["torch"]
    assert page.run_id == wandb_logger.run_id("split-digits/task", "ewc", 0, run.deciding()), (
        "the same run, the same page"
    )
    assert page.run_id != wandb_logger.run_id("split-digits/task", "ewc", 1, run.deciding())


def test_history_has_one_row_an_experience(finished):
    _, record, _, found = finished
    rows = [items(m.history.item) for m in found if m.HasField("history")]
    rows = [row for row in rows if "experience" in row]
    assert [row["experience"] for row in rows] == list(range(5))
    for index, row in enumerate(rows):
        logged = [row[f"accuracy/exp_{j:02d}"] for j in range(5)]
        assert logged == pytest.approx(record.accuracy_matrix[index])
        assert row["ACC"] == pytest.approx(sum(logged[: index + 1]) / (index + 1))
        assert ("forgetting" in row) == (index > 0)
        assert row["seconds"] > 0
    assert rows[-1]["ACC"] == pytest.approx(record.metrics["ACC"])
    assert rows[-1]["forgetting"] == pytest.approx(record.metrics["forgetting"])


def test_the_accuracy_matrix_as_table_and_image(finished):
    _, record, path, found = finished
    last = {}
    for message in found:
        if message.HasField("history"):
            last |= items(message.history.item)
    media = path.parent / "files"
    table = json.loads((media / last["accuracy_matrix/path"]).read_text())
    assert table["columns"] == ["trained_experience", *(f"exp_{j:02d}" for j in range(5))]
    assert [row[1:] for row in table["data"]] == record.accuracy_matrix
    image = (media / last["accuracy_matrix_image/path"]).read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 3000


def test_joint_training_has_seen_every_experience(tmp_path):
    _, record, _, found = offline_run("joint", tmp_path)
    rows = [items(m.history.item) for m in found if m.HasField("history")]
    assert [row["ACC"] for row in rows if "ACC" in row] == [pytest.approx(record.metrics["ACC"])]


def test_metrics_in_the_summary_and_the_record_as_an_artifact(finished):
    _, record, _, found = finished
    summary = {}
    for message in found:
        if message.HasField("summary"):
            summary |= items(message.summary.update)
    for name in METRICS:
        assert summary[name] == pytest.approx(record.metrics[name])
    (artifact,) = [m.artifact for m in found if m.HasField("artifact") and m.artifact.type == "record"]
    assert [entry.path for entry in artifact.manifest.contents] == ["record.json"]


def test_what_a_generator_makes_as_pictures_and_its_class_shares_as_a_table(tmp_path):
    _, record, path, found = offline_run("noise-replay", tmp_path, protocol.get("split-digits/class"))
    history = [items(m.history.item) for m in found if m.HasField("history")]
    pictures = [row for row in history if any(key.startswith("generated") for key in row)]
    assert [row["experience"] for row in pictures] == [0, 1, 2, 3, 4]
    assert len(list(path.parent.rglob("media/images/generated_*.png"))) == 5
    (file,) = path.parent.rglob("class_shares_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["trained_experience", *(f"class_{label}" for label in range(10))]
    assert [row[1:] for row in table["data"]] == record.generated.class_shares


def test_wandb_failing_does_not_fail_the_run(tmp_path, monkeypatch):
    import wandb

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", broken)
    entry = protocol.get("split-digits/task")
    with pytest.warns(UserWarning, match="W&B logging stopped, the run goes on: OSError: disk full"):
        record = execute(run_of(entry, "naive", 0), tmp_path, "cpu", "offline", lambda e: None)
    assert record.complete


def test_never_a_login_prompt(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert wandb_logger.default_mode() == "offline"
    with pytest.warns(UserWarning, match="W&B is offline: no API key"):
        assert wandb_logger.usable_mode("online") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_logger.default_mode() == "online"
    assert wandb_logger.usable_mode("online") == "online"


def test_a_command_line_without_an_account_asks_nothing(tmp_path):
    arguments = ["run", "split-digits/task", "naive", "--seeds", "1", "--out", str(tmp_path), "--wandb", "online"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NETRC": str(tmp_path / "none")},
    )
    assert done.returncode == 0, done.stderr
    assert "W&B is offline: no API key" in done.stderr
    assert "W&B (offline)" in done.stdout
    assert list(tmp_path.rglob("*.wandb"))


def test_a_generator_that_is_judged_itself(tmp_path):
    _, record, path, found = offline_run("gan-finetune", tmp_path, SMALL)
    history = [items(m.history.item) for m in found if m.HasField("history")]
    distances = [(row["experience"], row["frechet_distance"]) for row in history if "frechet_distance" in row]
    assert distances == [(i, pytest.approx(d)) for i, d in enumerate(record.generated.frechet_distance)]
    assert len(list(path.parent.rglob("media/images/generated_*.png"))) == 10
    assert len(list(path.parent.rglob("media/videos/generated_animation_*.gif"))) == 1
    summary = {}
    for message in found:
        if message.HasField("summary"):
            summary |= items(message.summary.update)
    assert summary["reverse_accuracy"] == pytest.approx(record.generated.reverse_accuracy)
