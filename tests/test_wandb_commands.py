"""W&B, through the commands as a user has them, with real runs of a second each."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.judging import generation
from engrams.benchmarks.judging.observer import CLASSIFIERS, classifier_for
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.studies import listing
from engrams.reports import store
from engrams.reports.wandb import page, read, sending
from engrams.strategies import catalogue
from tests.test_runs import engrams
from tests.wandb_runs import RECORDS, SOLVER, Screen, arrived, online, record_in, rows, table_of
from tests.wandb_service import ENTITY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone")]


SOLVERS = """
title = "five experiences of two digits, a second a run"
dataset = "digits"
[stream]
kind = "split"
scenarios = ["class"]
classes_per_experience = 2
class_order = "in-order"
validation_fraction = 0.2
[network]
hidden_size = 16
hidden_layers = 1
[training]
optimizer = "adam"
learning_rate = 1e-3
batch_size = 64
epochs = 1
schedule = "constant"
reset_optimizer = false
[strategies.dgr-vae]
generator_epochs = 1
generator_batch_size = 64
generator_learning_rate = 1e-3
latent_size = 4
hidden_sizes = [32]
likelihood = "gaussian"
[sources]
stream = "a test's"
network = "a test's"
training = "a test's"
"strategies.dgr-vae" = "a test's"
"""
GENERATORS = """
title = "five classes of digits are generated one after another"
dataset = "digits"
[stream]
kind = "split"
scenarios = ["class"]
classes_per_experience = 1
class_order = "in-order"
validation_fraction = 0.2
[generation]
images_per_class = 20
[gan]
steps = 5
batch_size = 16
latent_size = 4
width = 8
smallest_side = 2
learning_rate = 1e-3
critic_steps = 1
[network]
hidden_size = 16
hidden_layers = 1
[training]
optimizer = "adam"
learning_rate = 1e-3
batch_size = 64
epochs = 1
schedule = "constant"
reset_optimizer = false
[strategies.mergan-ra]
ra_lambda = 0.1
[sources]
stream = "a test's"
generation = "a test's"
gan = "a test's"
network = "a test's"
training = "a test's"
"strategies.mergan-ra.ra_lambda" = "a test's"
"""


@pytest.fixture
def protocols(tmp_path):
    """Of a second a run."""
    (tmp_path / "solvers.toml").write_text(SOLVERS)
    (tmp_path / "generators.toml").write_text(GENERATORS)
    return tmp_path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of the classifier of real digits, which every generator is judged by: trained once."""
    out = tmp_path_factory.mktemp("classifier")
    classifier_for(registry.get("split-digits/class"), "cpu", out)
    return out / CLASSIFIERS


def test_a_real_mergan_run_leaves_a_journal_of_what_it_did_and_all_of_it_arrives(
    service, protocols, classifier, monkeypatch
):
    monkeypatch.setattr(generation, "REVERSE_IMAGES_SEEN", 1000)
    shutil.copytree(classifier, protocols / "runs" / CLASSIFIERS)
    entry = registry.get(str(protocols / "generators.toml"))
    run = replace(plan(entry, ["mergan-ra"], [0])[0], first=3)
    record = execute(run, protocols / "runs", "cpu", "offline", lambda epochs: None)
    folder = run.folder(protocols / "runs") / "wandb"
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    config = lines[0]["begin"]["config"]
    assert config["about"]["title"] == entry.title
    assert config["about"]["engrams"]["version"]
    assert config["strategy"] == record.hyperparameters["strategy"]
    written = [line["row"] for line in lines if "row" in line]
    experiences = [row for row in written if "experience" in row]
    assert [row["experience"] for row in experiences] == list(range(3))
    assert experiences[-1]["seconds"] <= record.seconds
    assert [row["frechet_distance"] for row in experiences] == record.generated.frechet_distance
    assert all((folder / row["generated"]["picture"]).exists() for row in experiences)
    assert lines[-1]["end"] == {"complete": True, "summary": {}, "record": page.digest_of(record)}
    assert sending.upload(online(), [protocols / "runs"], Screen())
    (found,) = service.pages.values()
    assert arrived(found) == record.model_dump()
    assert table_of(found) == record.accuracy_matrix
    pictures = [body for file, body in found.files.items() if "images/generated" in file]
    assert sorted(pictures) == sorted((folder / row["generated"]["picture"]).read_bytes() for row in experiences)
    assert [row["loss/generator"] for row in found.history if "epoch" in row] == [
        row["loss/generator"] for row in written if "epoch" in row
    ]
    assert "generated_animation" in rows(found)[-1]


SUITES = """
import sys
from pathlib import Path
from engrams.benchmarks.cli.app import main
from engrams.benchmarks.jobs import suites
from engrams.reports.wandb import sending

if __name__ == "__main__":
    suites.FILE = Path("suites.toml").absolute()
    out = {"tmp": Path(sys.argv[1]), "home": Path.home()}
    for mode in ("disabled", "offline", "online"):
        sending.AT_MOST = 5.0 if mode == "online" else 28.0
        sys.argv = ["engrams", "suite", "bench", "--out", mode, "--wandb", mode]
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, stop.code
        for name, place in out.items():
            left = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
            Path(f"{mode}-{name}.txt").write_text("\\n".join(left))
"""


def test_a_suite_with_wandb_on_off_and_online_at_a_service_that_fails_half_way(service, protocols, alone, classifier):
    """As ``make bench`` has it, with a smaller suite: a solver, and DGR with pictures."""
    for mode in ("disabled", "offline", "online"):
        shutil.copytree(classifier, protocols / mode / CLASSIFIERS)
    (protocols / "suites.toml").write_text(
        '[bench]\nseeds = 1\n[[bench.runs]]\nprotocols = ["solvers.toml"]\nstrategies = ["naive", "dgr-vae"]\n'
    )
    # It fails for good when the first run has arrived.
    service.refuse = lambda what: 500 if any(found.exit_code == 0 for found in service.pages.values()) else None
    (protocols / "suites.py").write_text(SUITES)
    done = in_a_process(protocols, "suites.py", str(alone))
    assert done.returncode == 0, done.stdout + done.stderr
    made = {
        mode: {store.read(path).strategy: store.read(path) for path in (protocols / mode).rglob("*/*/0/record.json")}
        for mode in ("disabled", "offline", "online")
    }
    assert set(made["disabled"]) == {"naive", "dgr-vae"}
    for mode in ("offline", "online"):
        for strategy, record in made["disabled"].items():
            other = made[mode][strategy]
            assert record.complete
            assert other.costs.operations == record.costs.operations
            assert other.model_copy(update={"seconds": record.seconds, "costs": record.costs}) == record, (
                mode,
                strategy,
            )
        for place in ("tmp", "home"):
            assert (protocols / f"{mode}-{place}.txt").read_text() == (protocols / f"disabled-{place}.txt").read_text()
    assert not any(path.is_file() for path in alone.rglob("*"))
    assert "Loaded credentials" not in done.stdout + done.stderr
    kept = {record.strategy: record for record in read.records_of_files(protocols / "offline")}
    assert kept == made["offline"], "W&B's offline files have everything"
    *_, said = done.stdout.split("W&B (offline): 2 runs kept below offline")
    assert "W&B: not sent: solvers/" in said
    assert "W&B: 'engrams upload online' sends what was not sent later" in said.splitlines()
    # What did not arrive is sent later, and all equals the records, field by field.
    service.refuse = lambda what: None
    assert sending.upload(online(), [protocols / "online"], Screen())
    assert {found.last("jobType") for found in service.pages.values()} == set(made["online"])
    for found in service.pages.values():
        record = made["online"][found.last("jobType")]
        assert arrived(found) == record.model_dump()
        assert table_of(found) == record.accuracy_matrix
        assert found.config["about"]["command"] == "engrams suite bench --out online --wandb online"
        pictures = [file for file in found.files if "images/generated" in file]
        assert len(pictures) == {"naive": 0, "dgr-vae": 5}[record.strategy]
        losses = {name for row in found.history for name in row if name.startswith("loss/")}
        assert losses == {"loss/training"} | ({"loss/generator"} if record.strategy == "dgr-vae" else set())
        assert all("class_shares/class_09" in row for row in rows(found) if record.generated)


def in_a_process(folder, *arguments, **variables):
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


AGENT = """
from wandb import wandb_agent
from wandb.cli.cli import cli

wandb_agent.Agent.POLL_INTERVAL = 0.3  # it would look every five seconds
cli()
"""


def test_wandbs_own_agent_runs_our_sweep_and_each_trial_is_a_page_of_it(service, protocols, monkeypatch, capsys):
    monkeypatch.chdir(protocols)
    command_line(["sweep", "solvers.toml", "ewc"])
    Path("sweep.yaml").write_text(capsys.readouterr().out)
    Path("engrams").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m engrams.benchmarks "$@"\n')
    Path("engrams").chmod(0o755)
    made = in_a_process(protocols, "-m", "wandb", "sweep", "sweep.yaml")
    assert made.returncode == 0, made.stderr
    assert list(service.sweeps) == ["sweep1"]
    service.trials = [{"ewc_lambda": 30.0}, {"ewc_lambda": 3000.0}]
    found = os.pathsep.join([str(protocols), os.environ["PATH"]])
    done = in_a_process(protocols, "-c", AGENT, "agent", f"{ENTITY}/engrams/sweep1", PATH=found)
    assert done.returncode == 0, done.stderr
    records = {
        record.hyperparameters["strategy"]["ewc_lambda"]: record for record in store.read_all(Path("runs-sweep"))
    }
    assert set(records) == {30.0, 3000.0}
    assert set(service.pages) == {"trial0", "trial1"}, done.stdout
    for trial in service.pages.values():
        assert (trial.last("sweep"), trial.state) == ("sweep1", "finished")
        (artifact,) = service.artifacts_of(trial, "record")
        record = records[trial.config["ewc_lambda"]]
        assert record_in(artifact) == record
        assert trial.summary["final/ACC"] == record.acc
    assert not service.unknown


def test_study_and_search_log_as_run_does_and_ones_own_active_run_is_left_alone(service, protocols, monkeypatch):
    import wandb

    from engrams.benchmarks import run

    monkeypatch.chdir(protocols)
    Path("studies.toml").write_text(STUDIES)
    monkeypatch.setattr(listing, "FILE", Path("studies.toml").absolute())
    with wandb.init(project="mine", mode="offline", dir=str(protocols), settings=wandb.Settings(silent=True)) as mine:
        mine.log({"before": 1})
        run("solvers.toml", "naive", 1, "runs", wandb=online(), progress=False)
        search = ["search", "solvers.toml", "l2", "--trials", "2"]
        for command, count in ((["study", "points"], 2), (["study", "halves"], 4), (search, 2)):
            done = engrams(*command, "--out", command[0], "--wandb", "online")
            assert done.returncode == 0, done.stdout + done.stderr
            last = done.stdout.splitlines()[-1]
            assert re.fullmatch(rf"W&B: {count} runs sent: {service.url}/{ENTITY}/engrams", last), done.stdout
        assert wandb.run is mine
        mine.log({"after": 2})
    wandb.teardown()
    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    logged = [read._items(message.history.item) for message in read.messages(path) if message.HasField("history")]
    assert [{"before", "after"} & set(row) for row in logged] == [{"before"}, {"after"}]
    pages = list(service.pages.values())
    assert all(found.state == "finished" for found in pages)
    assert "mine" not in {found.project for found in pages}
    of = {found.last("displayName"): found for found in pages}
    assert len(of) == 1 + 2 + 4 + 2
    (record,) = store.read_all(Path("runs"))
    assert arrived(of["solvers naive seed 0"]) == record.model_dump()
    points = store.read_all(Path("study"))
    assert len(points) == 2
    for record in points:
        assert arrived(of[f"solvers ewc {record.variant} seed 0"]) == record.model_dump()
    trials = [found for found in pages if "validation" in found.last("tags")]
    assert len(trials) == 2
    for found in trials:
        assert [row["experience"] for row in rows(found)] == list(range(5))
        assert found.summary["final/validation_ACC"] == rows(found)[-1]["ACC"]
        assert "final/ACC" not in found.summary
    subsets = [found for found in pages if "importance on" in found.last("displayName")]
    assert len(subsets) == 4
    assert all(0 <= found.summary["final/forgetting"] <= 1 for found in subsets)


STUDIES = """
[points]
kind = "sweep"
title = "small"
protocol = "solvers.toml"
strategy = "ewc"
seeds = 1
hyperparameter = "ewc_lambda"
grid = [1e2, 1e5]
source = "ours"
[[points.lines]]
label = "exact"
hyperparameters = { fisher = "exact" }
[halves]
kind = "subsets"
title = "halves"
protocol = "split-digits/domain"
classes_per_experience = 5
mas_lambda = 0.03
subsets = [[0, 2, 4], [1, 3]]
seeds = 1
source = "ours"
"""


def test_the_last_line_says_that_nothing_new_was_sent(service, protocols, monkeypatch):
    monkeypatch.chdir(protocols)
    again = ["run", "solvers.toml", "naive", "--seeds", "1", "--wandb"]
    assert engrams(*again, "disabled").returncode == 0
    done = engrams(*again, "online")
    assert done.stdout.splitlines()[-1] == "W&B: nothing new; 'engrams upload runs' sends what is complete already"
    assert not service.asked


def test_a_project_that_is_not_there_is_one_line(service):
    assert engrams("table", "wandb:x").stderr == f"error: wandb:x: there is no project {ENTITY}/x\n", "and no emoji"


def test_the_command_line_prints_dashboards_and_a_sweep_for_every_range(capsys):
    import yaml

    from engrams.benchmarks.cli.options import settings_of
    from engrams.reports.wandb.sweeps import sweep_of

    command_line(["dashboards", "--dry-run", "--entity", "me"])
    assert set(json.loads(capsys.readouterr().out)) == {"workspace", "report", "heat_map"}
    command_line(["sweep", "split-digits/task", "ewc"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["command"][-2:] == ["--set", "${args_json}"]
    assert settings_of(['{"ewc_lambda": 12.5}']) == {"ewc_lambda": 12.5}
    searched = {name: entry for name in catalogue.CATALOGUE if (entry := catalogue.get(name)).search}
    assert len(searched) > 8
    for name, entry in searched.items():
        made = sweep_of("split-digits/task", name, {key: (s.low, s.high) for key, s in entry.search.items()})
        assert set(made["parameters"]) <= set(entry.hyperparameters.model_fields)


def test_a_sweep_names_files_so_that_an_agent_in_any_folder_finds_them(tmp_path, monkeypatch, capsys):
    import yaml

    (tmp_path / "mine.toml").write_text('extends = "split-digits"\nstream = { scenarios = ["class"] }\n')
    (tmp_path / "own.py").write_text("from engrams.strategies.catalogue import get\n\ntuned = get('l2')\n")
    monkeypatch.chdir(tmp_path)
    for name, whole in (("own.py:tuned", f"{tmp_path}/own.py:tuned"), ("ewc+replay", "ewc+replay")):
        command_line(["sweep", "mine.toml", name])
        command = yaml.safe_load(capsys.readouterr().out)["command"]
        assert {str(tmp_path / "mine.toml"), whole} < set(command)


def command_line(arguments):
    from engrams.benchmarks.cli import app, wandb  # noqa: F401

    with pytest.raises(SystemExit) as stopped:
        app.app(arguments)
    assert not stopped.value.code


def test_upload_without_records_or_a_key_is_one_line(tmp_path):
    nowhere = engrams("upload", tmp_path / "nope").stderr
    assert nowhere == f"error: there is no folder {tmp_path / 'nope'}; 'engrams run' makes one\n"
    assert engrams("upload", tmp_path).stderr == f"error: there are no records in {tmp_path}\n"
    store.write(store.read(RECORDS / SOLVER / "record.json"), tmp_path / SOLVER)
    done = engrams("upload", tmp_path)
    assert done.stderr == "error: W&B: there is no API key; set WANDB_API_KEY or run 'wandb login' first\n"
    assert not done.stdout
