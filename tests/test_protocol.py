"""Protocol files: what they may say, and what is said to those that may not."""

import json
import pickle
import re
from functools import cache
from pathlib import Path

import pytest
import tomli_w

from engrams.benchmarks.cli.options import settings_of
from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.jobs import suites
from engrams.benchmarks.jobs.plan import plan, run_of
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.protocol import MissingHyperparameters
from engrams.reports import store
from engrams.strategies import catalogue
from engrams.strategies.catalogue import CATALOGUE

GOOD = (protocol.FOLDER / "split-digits.toml").read_text(encoding="utf-8")


def test_every_protocol_that_is_promised_is_there():
    promised = ["permuted-digits", "permuted-mnist"]
    promised += ["split-cifar10/task", "split-cifar10/class", "split-tiny-imagenet"]
    promised += [f"split-{data}/{scenario}" for data in ("digits", "mnist") for scenario in ("task", "domain", "class")]
    assert set(promised) <= set(protocol.names())


def test_hsu_et_al_2018():
    entry = protocol.get("split-mnist/task")
    assert (entry.network.hidden_size, entry.network.hidden_layers) == (400, 2)
    training = entry.training
    assert (training.optimizer, training.learning_rate, training.batch_size, training.epochs) == ("adam", 1e-3, 128, 4)


@pytest.mark.parametrize("suite", ["digits", "mnist"])
def test_every_strategy_of_the_suites_has_its_hyperparameters(suite):
    for name, strategy in {(name, strategy) for name, strategy, _ in suites.runs_of(suite)}:
        assert protocol.get(name).hyperparameters_of(catalogue.get(strategy))


def test_the_reported_records_are_of_the_settings_that_the_protocols_have_now():
    """A field that comes later, or another kind of network, must not make old records those of other settings."""
    records = store.read_all(Path(__file__).parent.parent / "reports" / "results" / "records")
    assert records

    @cache
    def settings_now(name: str, variant: str, strategy: str) -> dict:
        by_hand = settings_of(variant.lower().split(",") if variant else [])
        return protocol.get(name, protocol.of_protocol(by_hand)).deciding(catalogue.get(strategy))

    for record in records:
        settings = settings_now(record.protocol, record.variant, record.strategy)
        assert {key: record.hyperparameters[key] for key in settings} == settings


def test_settings_are_the_same_after_a_record_is_read_back():
    for name in protocol.names():
        settings = protocol.get(name).deciding(catalogue.get("mergan-ra"))
        assert json.loads(json.dumps(settings)) == settings


def test_split_tiny_imagenet_is_that_of_the_avalanche_baselines():
    entry = protocol.get("split-tiny-imagenet")
    assert entry.scenario == "task"
    assert (entry.network.convolutions, entry.network.hidden_sizes) == (
        (64, "M", 64, "M", 64, 64, "M", 128, 128, "M"),
        (128, 128),
    )
    training = entry.deciding(catalogue.get("naive"))["training"]
    assert training == {
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "batch_size": 200,
        "epochs": 50,
        "schedule": "constant",
        "reset_optimizer": False,
        "horizontal_flips": True,
    }


def test_a_file_of_one_scenario_gives_the_protocol_its_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('["task", "domain", "class"]', '["class"]'), encoding="utf-8")
    assert [(entry.name, entry.scenario) for entry in protocol.read(path)] == [("mine", "class")]


CNN = (protocol.FOLDER / "split-cifar10.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'kind = "cnn"',
            'kind = "resnet"',
            "no such kind of network; there are 'mlp', 'cnn', 'resnet18-reduced' and 'wide-resnet', and one's own",
        ),
        (
            'kind = "cnn"',
            'kind = "wide-resnet"\ndepth = 27\nwiden_factor = 2',
            r"network.depth: the depth of a wide-resnet is 4 more than a multiple of 6.* \(got 27\)",
        ),
        ('kind = "cnn"', 'kind = "mlp"', "network.convolutions: unknown key"),
        ("[32, 32", "[32, 0", r"network.convolutions.1.*\(got 0\)"),
        ('64, "M"]', '64, "m"]', r"network.convolutions.5.*\(got 'm'\)"),
        ("[512]", "[-1]", r"network.hidden_sizes.0: .*greater than or equal to 1 \(got -1\)"),
        ("std = [0.2023", "std = [0.0", r"images.std.0: .*greater than 0 \(got 0.0\)"),
        ("std = [0.2023, 0.1994, 0.2010]", "std = []", "images.std: .*at least 1 item"),
        ("std = [0.2023, 0.1994, 0.2010]", 'std = "big"', r"images.std: .*valid number \(got 'big'\)"),
        ("epochs = 20", "epochs = 20\nmomentum = 0.9", "training: .*adam takes no momentum"),
        (
            "horizontal_flips = true",
            'augmented = "buffer"',
            "augmented = 'buffer' goes with horizontal_flips",
        ),
        ("epochs = 20", "epochs = 20\nrandom_crops = -1", r"training.random_crops: .*\(got -1\)"),
        ("epochs = 20", "epochs = 20\nmomentum = 1.0", "training.momentum: .*less than 1"),
    ],
)
def test_what_cannot_be_in_a_convolutional_protocol(tmp_path, old, new, message):
    assert old in CNN
    path = tmp_path / "mine.toml"
    path.write_text(CNN.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProtocolError, match=message) as caught:
        protocol.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_was_chosen_is_the_best_of_its_evidence():
    chosen = sorted((protocol.FOLDER / "chosen").rglob("*.toml"))
    assert chosen
    for path in chosen:
        for strategy, entry in protocol.read_chosen(path).items():
            tried = [trial for trial in entry.evidence["validation_ACC"] if isinstance(trial["ACC"], float)]
            best = max(tried, key=lambda trial: trial["ACC"])["ACC"]
            ours = [t for t in tried if all(t[key] == value for key, value in entry.hyperparameters.items())]
            assert {trial["ACC"] for trial in ours} == {best}, f"{path} {strategy}"


def test_what_was_chosen_was_chosen_under_the_settings_that_there_are_now():
    """Otherwise 'engrams run' says of our own protocols that they have to be searched anew."""
    for name in protocol.names():
        entry = protocol.get(name)
        for strategy, choice in entry.chosen.items():
            assert choice.fingerprint == entry.fingerprint(catalogue.get(strategy)), f"{name} {strategy}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 10", "epochs = 0", r"training.epochs: .*greater than or equal to 1 \(got 0\)"),
        ("epochs = 10", 'epochs = "10"', r"training.epochs: .*valid integer \(got '10'\)"),
        ("epochs = 10", "epoch = 10", r"training.epochs: missing|training.epoch: unknown key"),
        ("epochs = 10", "epochs = 10\nwarmup = 3", "training.warmup: unknown key"),
        ("epochs = 10", "epochs = = 10", r"not valid TOML: .*line \d+"),
        ('dataset = "digits"', 'dataset = ""', r"dataset: .*at least 1 character"),
        ("[stream]", '[stream]\nboundaries = "gradual"', "stream: boundaries = 'gradual' and a width go together$"),
        (
            "[stream]",
            '[stream]\nboundaries = "gradual"\nwidth = 0.5',
            "stream.boundaries = 'gradual' goes with training.ep",
        ),
        ("[stream]", "[stream]\nwidth = 0.5", "stream: boundaries = 'gradual' and a width go together$"),
        ("[stream]", '[stream]\nboundaries = "gradual"\nwidth = 0.0', r"stream.width: .*greater than 0 \(got 0.0\)"),
        ('dataset = "digits"', 'dataset = "mine.py:"', r"'mine.py:' names no function or class"),
        ('kind = "split"', 'kind = "splits"', r"stream: .*'splits'"),
        ("learning_rate = 1e-3", "learning_rate = nan", r"training.learning_rate: .*finite number"),
        ("gamma = 0.9", "gamma = 1.9", r"strategies.ewc-online.gamma: .*less than or equal to 1 \(got 1.9\)"),
        ("gamma = 0.9", "gama = 0.9", r"strategies.ewc-online.gama: unknown key"),
        (
            "[strategies.ewc-online]",
            "[strategies.ewc-onlin]",
            "no strategy is called 'ewc-onlin'; did you mean 'ewc-onl",
        ),
        ("[stream]", "[judging]\nsamples = 5\n[stream]", "judging: samples are those .*: set every, too"),
        ('["task", "domain", "class"]', '["task", "task"]', "stream.scenarios: .*a scenario stands there twice"),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_key(tmp_path, old, new, message):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProtocolError, match=message) as caught:
        protocol.read(path)[0].hyperparameters_of(catalogue.get("ewc-online"))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"network" =', '"networks" =', "network.hidden_size has no source"),
        ('"training" =', '"training.momentum" = "?"\n"training" =', "sources.training.momentum: unknown key"),
    ],
)
def test_every_number_of_our_own_protocols_has_a_source(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    assert old in GOOD
    (tmp_path / "mine.toml").write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProtocolError, match=message):
        protocol.read(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[ewc.hyperparameters]\newc_lambda = -1.0\n[ewc.evidence]\n", r"strategies.ewc.ewc_lambda: .*\(got -1.0\)"),
        ("[ewc]\newc_lambda = 1.0\n", r"ewc.\w+: (missing|unknown key)"),
        ("ewc = 3\n", "ewc: .*"),
        ("[ewc.hyper", "not valid TOML"),
    ],
)
def test_a_bad_choice_is_refused_under_its_own_name(tmp_path, content, message):
    (tmp_path / "mine.toml").write_text(GOOD, encoding="utf-8")
    path = tmp_path / "chosen" / "mine" / "task.toml"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ProtocolError, match=message) as caught:
        protocol.get(str(tmp_path / "mine.toml/task")).hyperparameters_of(catalogue.get("ewc"))
    assert str(caught.value).startswith(f"{path}: ")


def test_what_was_chosen_outlives_a_scenario_more_or_less(tmp_path):
    """The file that it is written to is called otherwise then."""
    file = tmp_path / "two.toml"

    def lambdas(scenarios):
        file.write_text(f'extends = "split-digits"\nstream = {{ scenarios = {scenarios} }}\n')
        names = [f"{file}/{one}" for one in scenarios] if len(scenarios) > 1 else [str(file)]
        return [protocol.get(one).hyperparameters_of(catalogue.get("ewc")).ewc_lambda for one in names]

    def choose(where, value, fingerprint=""):
        path = tmp_path / "chosen" / where
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"hyperparameters": {"ewc_lambda": value}, "fingerprint": fingerprint, "evidence": {}}
        path.write_text(tomli_w.dumps({"ewc": found}))

    lambdas(["class"])
    choose("two.toml", 7.5, protocol.get(str(file)).fingerprint(catalogue.get("ewc")))
    assert lambdas(["class", "task"]) == [7.5, 7.5]
    stale = [protocol.get(f"{file}/{one}").stale(catalogue.get("ewc")) for one in ("class", "task")]
    assert stale[0] is None
    assert "ewc_lambda of ewc was chosen under other settings" in stale[1]
    choose("two/task.toml", 8.5)
    assert lambdas(["class", "task"]) == [7.5, 8.5]
    assert lambdas(["task"]) == [7.5], "its own file goes before"
    (tmp_path / "chosen" / "two.toml").unlink()
    assert lambdas(["task"]) == [8.5]


def test_a_strategy_may_have_a_learning_rate_of_its_own(tmp_path):
    name = "buzzega2020-rotated-mnist"
    rates = {
        strategy: run_of(protocol.get(name), strategy).deciding()["training"] for strategy in ("naive", "ewc", "derpp")
    }
    assert {strategy: training["learning_rate"] for strategy, training in rates.items()} == {
        "naive": 0.2,
        "ewc": 0.1,
        "derpp": 0.1,
    }
    assert "learning_rate_of" not in rates["naive"]
    by_hand = protocol.get(name, {"training.learning_rate": 0.05})
    assert run_of(by_hand, "ewc").training.learning_rate == 0.05
    (tmp_path / "mine.toml").write_text(f"extends = '{name}'\n[training]\nlearning_rate = 0.3\n", encoding="utf-8")
    assert run_of(protocol.get(str(tmp_path / "mine.toml")), "ewc").training.learning_rate == 0.3
    for key, rate, message in (
        ("evc", 0.1, "no strategy is called 'evc'; did you mean 'ewc'"),
        ("ewc", -1.0, "Input should be greater than 0"),
    ):
        with pytest.raises(ProtocolError, match=f"training.learning_rate_of.{key}: {message}"):
            protocol.get(name, {f"training.learning_rate_of.{key}": rate})


def test_a_missing_hyperparameter_says_how_to_get_one(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    entry = protocol.read(path)[0]
    with pytest.raises(
        ProtocolError, match=rf"{path}/task: strategies.ewc.ewc_lambda: missing; .*search {path}/task ewc"
    ):
        entry.hyperparameters_of(catalogue.get("ewc"))
    assert entry.hyperparameters_of(catalogue.get("ewc"), {"ewc_lambda": 3.0}).ewc_lambda == 3
    path.write_text(re.sub(r"mem_size = \d+\nepochs = \d+\n", "", GOOD), encoding="utf-8")
    several = r"gdumb.mem_size, \S+gdumb.epochs: missing; set them in .* with --set mem_size=... --set epochs=..."
    with pytest.raises(ProtocolError, match=several):
        protocol.read(path)[0].hyperparameters_of(catalogue.get("avalanche-gdumb"))


def test_what_all_strategies_lack_is_said_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(r"mem_size = \d+\nepochs = \d+\n", "", GOOD), encoding="utf-8")
    with pytest.raises(
        ProtocolError,
        match=rf"{path}/task: strategies.ewc.ewc_lambda, strategies.avalanche-gdumb.mem_size, "
        rf"strategies.avalanche-gdumb.epochs, strategies.mas.mas_lambda: missing; set them in the protocol or with "
        rf"--set ewc_lambda=... --set mem_size=... --set epochs=... --set mas_lambda=..., or run 'engrams search "
        rf"{path}/task ewc mas' for those that a search chooses$",
    ):
        plan(f"{path}/task", ["naive", "ewc", "avalanche-gdumb", "mas"], [0])


def test_all_that_a_file_lacks_is_said_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"\ndataset = "digits"\n[stream]\nkind = "split"\n', encoding="utf-8")
    with pytest.raises(ProtocolError, match=r"stream.scenarios, .*training.*: missing$"):
        protocol.read(path)


def test_misspelt_names_get_a_suggestion():
    with pytest.raises(
        UnknownName, match=re.escape("no protocol is called 'split-mnist/tsk'; did you mean 'split-mnist/task'?")
    ):
        protocol.get("split-mnist/tsk")
    with pytest.raises(UnknownName, match="no suite is called 'digit'; did you mean 'digits'"):
        suites.runs_of("digit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stream.kind": "split", "training.epochs": 1},
            "--set stream.kind=split: stream.scenarios, stream.classes_per_experience, stream.class_order, "
            "stream.validation_fraction: missing; set them, too",
        ),
        ({"gan.steps": 5}, "--set gan.steps=5: gan.batch_size, gan.latent_size, gan.width, gan.learning_rate: missing"),
        ({"training.momentum": 0.5}, "--set training.momentum=0.5: training: adam takes no momentum"),
        (
            {"stream.boundaries": "gradual", "stream.width": 1.0},
            "--set stream.boundaries=gradual --set stream.width=1.0: stream.boundaries = 'gradual' goes with train",
        ),
        (
            {"benchmark": "avalanche:SplitMNIST"},
            "--set benchmark=avalanche:SplitMNIST: a protocol has a benchmark",
        ),
        ({"training.learning_rate_of.nave": 0.1}, "--set training.learning_rate_of.nave: no strategy is called"),
    ],
)
def test_what_is_set_and_contradicts_is_named_and_not_the_file(settings, message):
    with pytest.raises(ProtocolError, match=f"^{re.escape(message)}"):
        protocol.get("permuted-digits", settings)


def test_a_file_that_is_wrong_by_itself_is_named_whatever_is_set(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("[training]", "[training]\nmomentum = 0.5"), encoding="utf-8")
    with pytest.raises(ProtocolError, match=f"^{path}: training: adam takes no momentum$"):
        protocol.read(path, {"training.epochs": 1})


def test_another_kind_of_stream_is_set_in_any_order():
    settings = {"stream.experiences": 3, "stream.kind": "permuted", "stream.validation_fraction": 0.2}
    for given in (settings, dict(reversed(settings.items()))):
        assert protocol.get("split-digits", given).stream.experiences == 3
    with pytest.raises(
        ProtocolError, match=r"^split-digits/class: it has 1 .* with what is set; name one: split-digits$"
    ):
        protocol.get("split-digits/class", settings)


@pytest.mark.parametrize(("name", "kind"), [("mine.toml/task", MissingHyperparameters), ("min", UnknownName)])
def test_what_is_refused_in_another_process_is_said_in_this_one(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(kind) as raised:
        plan(name, ["ewc"], [0])
    received = pickle.loads(pickle.dumps(raised.value))
    assert (type(received), str(received)) == (kind, str(raised.value))


def test_suites_name_only_what_exists():
    names = protocol.names()
    for suite in ("digits", "mnist"):
        for name, strategy, _ in suites.runs_of(suite):
            assert name in names
            assert strategy in CATALOGUE
    assert len({seed for *_, seed in suites.runs_of("digits")}) == 3
    missing = set(CATALOGUE) - {strategy for _, strategy, _ in suites.runs_of("digits")}
    assert missing == {
        *("avalanche-generative-replay-large", "gan-ewc", "gan-dgr"),
        *("avalanche-der", "avalanche-derpp", "avalanche-mir", "icarl", "avalanche-rwalk"),
        *("chaudhry2019-ewc", "chaudhry2019-mas"),  # beside the figures of that code alone
    }
    seeds = {part: {s for p, _, s in suites.runs_of("mnist") if p.startswith(part)} for part in ("split", "permuted")}
    assert {part: len(found) for part, found in seeds.items()} == {"split": 10, "permuted": 5}
    assert {s for *_, s in suites.runs_of("mnist", seeds=2)} == {0, 1}


def test_generators_are_not_judged_while_they_learn():
    with pytest.raises(ProtocolError, match="judging is of what a classifier answers; a protocol with generation has"):
        protocol.get("generate-digits", {"judging.every": 10})


@pytest.mark.parametrize(
    ("value", "end"), [(10.0, "lower"), (19.0, "lower"), (500.0, ""), (1e4, "upper"), (6e3, "upper")]
)
def test_what_was_chosen_at_an_end_of_what_was_tried_says_so(tmp_path, value, end):
    (tmp_path / "chosen" / "mine").mkdir(parents=True)
    (tmp_path / "mine.toml").write_text('extends = "split-digits"\n')
    tried = ", ".join(f"{{ ewc_lambda = {one}, ACC = 0.5 }}" for one in (10.0, 1e4, value))
    (tmp_path / "chosen" / "mine" / "class.toml").write_text(
        f"[ewc]\nhyperparameters = {{ ewc_lambda = {value} }}\n"
        f'evidence = {{ command = "engrams search mine", validation_ACC = [{tried}] }}\n'
    )
    written = protocol.as_toml(protocol.get(f"{tmp_path}/mine.toml/class"))
    said = "chosen by engrams search mine" + (f", at the {end} end of what was tried" if end else "")
    assert f'"strategies.ewc.ewc_lambda" = "{said}"' in written.splitlines()
