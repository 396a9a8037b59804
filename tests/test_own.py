"""Somebody's own strategies, protocols and settings, from the command line and from Python."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from engrams.benchmarks import load_protocol, run
from engrams.benchmarks.cli.options import OptionError, seeds_of, settings_of
from engrams.benchmarks.jobs.plan import PlanError, plan
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.reports import UserError, read_records, store
from engrams.strategies import catalogue
from tests.test_runs import engrams

QUICK = ("--seeds", 1, "--wandb", "disabled", "--set", "training.epochs=1")
STRATEGY = '''
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from engrams.strategies import Hyperparameters, LogUniform, Strategy


class Decay(Hyperparameters):
    strength: float
    power: int = 2


class DecayPlugin(SupervisedPlugin):
    """Pulls every parameter to zero."""

    def __init__(self, strength: float, power: int = 2, kept: object = SupervisedTemplate):
        super().__init__()
        self.strength, self.power = strength, power

    def before_backward(self, strategy, **kwargs):
        size = sum(p.abs().pow(self.power).sum() for p in strategy.model.parameters())
        strategy.loss = strategy.loss + self.strength * size


class Whole(SupervisedTemplate):
    def __init__(self, *, patience: int, plugins=None, **template):
        super().__init__(plugins=[*plugins, DecayPlugin(0.1 * patience)], **template)


decay = Strategy(
    summary="weight decay, written out",
    hyperparameters=Decay,
    search={"strength": LogUniform(1e-5, 1e-1)},
    plugin=lambda h: DecayPlugin(h.strength, h.power),
)
an_object, a_number = DecayPlugin(1.0), 3
'''
BROKEN = """
from engrams.strategies import Strategy
no_range = Strategy(plugin=lambda h: None, search={"step": (0.1, 1.0)})
"""
BAD_RANGE = """
from engrams.strategies import LogUniform, Strategy
bad_range = Strategy(plugin=lambda h: None, search={"step": LogUniform(0.0, 1.0)})
"""
NEEDS_A_NETWORK = """
from typing import TypedDict

import numpy as np
from avalanche.training.plugins import SupervisedPlugin
from torch import nn


class Options(TypedDict):
    a: float


class Distillation(SupervisedPlugin):
    def __init__(self, alpha, axes: np.array, options: Options, teacher: nn.Module):
        super().__init__()


class OfSeveral(SupervisedPlugin):
    def __init__(self, alpha, teachers: list[nn.Module]):
        super().__init__()
"""
NO_BUILD = """
from engrams.strategies import Strategy
no_build = Strategy(plugin=lambda h: None, network=lambda h, network: network())
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a strategy in it, in which the command line is called."""
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "bad_range.py").write_text(BAD_RANGE)
    (tmp_path / "no_build.py").write_text(NO_BUILD)
    (tmp_path / "teacher.py").write_text(NEEDS_A_NETWORK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_record(folder):
    (record,) = read_records(folder)
    return record


# --- strategies -------------------------------------------------------------------------------------------------------


def test_a_strategy_a_plugin_and_a_strategy_class_run_by_file(mine):
    """The three say the same thing: their results are equal to the bit."""
    names = ["mine.py:decay", "mine.py:DecayPlugin", "mine.py:Whole"]
    for name, setting in zip(names, ("strength=0.1", "strength=0.1", "patience=1"), strict=True):
        done = engrams("run", "split-digits/domain", name, *QUICK, "--set", setting, "--out", name[8:])
        assert done.returncode == 0, done.stdout + done.stderr
    found = [only_record(name[8:]) for name in names]
    assert found[0].accuracy_matrix == found[1].accuracy_matrix == found[2].accuracy_matrix
    assert found[0].strategy == "mine:decay", "the same wherever the file lies"
    assert found[0].hyperparameters["strategy"] == {"strength": 0.1, "power": 2}
    assert found[1].hyperparameters["strategy"] == {"strength": 0.1, "power": 2}, "what cannot be written is not set"
    naive = engrams("run", "split-digits/domain", "naive", *QUICK, "--out", "naive")
    assert naive.returncode == 0
    assert only_record("naive").accuracy_matrix != found[0].accuracy_matrix


def test_what_a_record_cannot_hold_is_refused_and_two_of_one_name_are(mine):
    (mine / "limit.py").write_text(
        "from avalanche.training.plugins import SupervisedPlugin\n\n\nclass Limit(SupervisedPlugin):\n"
        "    def __init__(self, limit=float('inf')):\n        super().__init__()\n"
    )
    with pytest.raises(ProtocolError, match=r"limit:Limit.limit: a record cannot hold inf; set it to a finite number"):
        plan("split-digits/class", ["limit.py:Limit"], [0])
    plan("split-digits/class", ["limit.py:Limit"], [0], {"limit": 3.0})
    for folder in "ab":
        (mine / folder).mkdir()
        (mine / folder / "mine.py").write_text(STRATEGY)
    names = [f"{folder}/mine.py:DecayPlugin" for folder in "ab"]
    with pytest.raises(PlanError, match=r"a/mine.py:DecayPlugin and .*b/mine.py:DecayPlugin would both be recorded as"):
        plan("split-digits/class", names, [0], {"strength": 0.1})
    assert len(plan("split-digits/class", [names[0], names[0]], [0], {"strength": 0.1})) == 1


ARGUMENTS = """
import torch
from avalanche.training.plugins import SupervisedPlugin


class Argued(SupervisedPlugin):
    def __init__(
        self,
        strength: float = 1.0,
        log_file: str = None,
        betas: tuple = (0.9, 0.99),
        pair: tuple[float, float] = (1.0, 2.0),
        device: torch.device = None,
        steps: int = 1e3,
        names: list[str] = ["a"],
    ):
        super().__init__()
        assert (strength, log_file, tuple(betas), device, steps, names) == (1.0, None, (0.9, 0.99), None, 1e3, ["a"])
        assert pair[1] == 3.0 or pair == (1.0, 2.0)

    def after_training_exp(self, strategy, **kwargs):
        strategy.eval(strategy.experience)
"""


def test_a_plugin_has_its_arguments_as_they_are_written(mine):
    """Hints that their own defaults do not keep to, and pairs, which a file has as lists; and it may evaluate."""
    (mine / "argued.py").write_text(ARGUMENTS)
    done = engrams("run", "split-digits/domain", "argued.py:Argued", *QUICK, "--set", "pair=[2.0, 3.0]", "--out", "own")
    assert done.returncode == 0, done.stdout + done.stderr
    found = only_record("own")
    assert found.complete
    assert engrams("run", "split-digits/domain", "naive", *QUICK, "--out", "plain").returncode == 0
    plain = only_record("plain")
    assert found.accuracy_matrix == plain.accuracy_matrix, "of the test stream, whatever a plugin evaluates"
    with pytest.raises(ProtocolError, match="strength: Input should be a valid number"):
        plan("split-digits/class", ["argued.py:Argued"], [0], {"strength": "abc"})


HINTED = """
from typing import List, Optional, Tuple

import numpy as np
from avalanche.training.plugins import SupervisedPlugin


class Hinted(SupervisedPlugin):
    def __init__(
        self,
        needed: np.array,
        weights: np.array = None,
        anything: any = None,
        called: callable = None,
        old: Optional[Tuple[float, float]] = None,
        new: "tuple[float, ...] | None" = None,
        missing: tuple[float, float] = None,
        pairs: list[tuple[int, int]] = [(1, 2)],
        named: Optional[dict[str, List[Tuple[int, int]]]] = None,
        either: Optional[List[float]] = None,
    ):
        super().__init__()
"""


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("weights", [1, 2], [1, 2]),
        ("anything", "a", "a"),
        ("called", 1, 1),
        ("old", [0.9, 0.99], (0.9, 0.99)),
        ("new", [0.9, 1], (0.9, 1.0)),
        ("missing", [0.9, 0.99], (0.9, 0.99)),
        ("pairs", [[3, 4], [5, 6]], [(3, 4), (5, 6)]),
        ("named", {"a": [[3, 4]]}, {"a": [(3, 4)]}),
        ("either", (1, 2.0), [1.0, 2.0]),
    ],
)
def test_a_hint_may_be_no_type_and_a_list_stands_for_a_tuple_anywhere_in_one(mine, name, given, kept):
    (mine / "hinted.py").write_text(HINTED)
    declared = catalogue.get("hinted.py:Hinted").hyperparameters
    assert declared(needed=0).arguments()[name] in (None, [(1, 2)])
    assert declared(**{"needed": 0, name: given}).arguments()[name] == kept
    with pytest.raises(ValueError, match=r"old.0\n +Input should be a valid number"):
        declared(needed=0, old=["a", 1.0])


LEAVES_OUT = """
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate


class NoPlugins(SupervisedTemplate):
    def __init__(self, plugins, **template):
        super().__init__(**template)


class OwnEvaluator(SupervisedTemplate):
    def __init__(self, evaluator, **template):
        super().__init__(evaluator=EvaluationPlugin(accuracy_metrics(stream=True)), **template)


class OneByOne(SupervisedTemplate):
    def __init__(self, train_mb_size=1, train_epochs=1, **template):
        super().__init__(train_epochs=train_epochs, **template)
"""


@pytest.mark.parametrize(
    ("name", "message"), [("NoPlugins", "does not take the plugins that"), ("OwnEvaluator", "has an evaluator of its")]
)
def test_a_strategy_that_leaves_out_what_it_is_given_is_refused(mine, name, message):
    (mine / "leaves.py").write_text(LEAVES_OUT)
    (run,) = plan("split-digits/class", [f"leaves.py:{name}"], [0])
    with pytest.raises(ProtocolError, match=f"split-digits/class: leaves:{name} {message}"):
        make_strategy(run, benchmark_of(run), "cpu", [])


def test_a_strategy_that_leaves_out_its_budget_is_warned_of(mine):
    (mine / "leaves.py").write_text(LEAVES_OUT)
    (run,) = plan("split-digits/class", ["leaves.py:OneByOne"], [0])
    with pytest.warns(UserWarning, match="OneByOne trains with train_mb_size = 1, and its record will say") as said:
        make_strategy(run, benchmark_of(run), "cpu", [])
    assert not [one for one in said if "trains with train_epochs" in str(one.message)]


def test_a_strategy_that_changed_is_another(mine):
    arguments = ("run", "split-digits/domain", "mine.py:decay", *QUICK, "--set", "strength=0.1")
    assert engrams(*arguments).returncode == 0
    (mine / "mine.py").write_text(STRATEGY.replace("self.strength * size", "self.strength * 2 * size"))
    done = engrams(*arguments)
    assert done.returncode == 2
    assert "was made with other settings (mine.py has changed since)" in done.stderr


def test_a_package_brings_strategies_by_its_entry_points(mine, monkeypatch):
    (mine / "outsider-1.0.dist-info").mkdir()
    (mine / "outsider-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (mine / "outsider-1.0.dist-info" / "entry_points.txt").write_text("[engrams.strategies]\nshrink = mine:decay\n")
    monkeypatch.syspath_prepend(str(mine))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    catalogue.registered.cache_clear()
    try:
        assert "of outsider: mine:decay" in engrams("list").stdout
        (one,) = plan("split-digits/domain", ["shrink"], [0], {"strength": 0.5})
        assert (one.strategy.name, one.hyperparameters.strength) == ("shrink", 0.5)
        assert plan("split-digits/domain", ["ewc+shrink"], [0], {"shrink.strength": 0.5})
    finally:
        catalogue.registered.cache_clear()


def test_what_ones_own_code_leaves_behind_is_not_there_in_the_next_run(mine):
    (mine / "leak.py").write_text(
        "from avalanche.training.plugins import SupervisedPlugin\n\n\nclass Leak(SupervisedPlugin):\n    runs = []\n\n"
        "    def __init__(self):\n        super().__init__()\n        self.runs.append(1)\n\n"
        "    def before_training(self, strategy, **kwargs):\n        assert len(self.runs) == 1\n"
    )
    several = ("--seeds", "0-2", "--workers", 1, "--wandb", "disabled", "--set", "training.epochs=1")
    done = engrams("run", "split-digits/domain", "leak.py:Leak", *several, "--out", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([one for one in read_records("runs") if one.complete]) == 3


def test_settings_are_read_as_toml_or_python_has_them():
    texts = ["a=True", "b=None", "c=.5", "d=3,4", "e=[1, 2]", "f=true", "g=text", "h=1e3", "i={1}", "j={[1]}"]
    found = settings_of(texts)
    assert list(found.values()) == [True, None, 0.5, [3, 4], [1, 2], True, "text", 1000.0, "{1}", "{[1]}"]


def test_rates_of_ones_own_strategies_go_by_their_names(mine):
    (mine / "rates.toml").write_text(
        'extends = "split-digits"\n[training]\nlearning_rate_of = { "mine.py:decay" = 0.5 }\n'
        '[stream]\nscenarios = ["task"]\n'
    )
    (one,) = plan("rates.toml", ["mine.py:decay"], np.arange(1), {"strength": np.logspace(-1, 0, 2)[0]})
    assert one.training.learning_rate == 0.5
    assert one.variant == "strength=0.1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:deca", "mine.py has no 'deca'; did you mean 'decay'?"),
        ("mine.py:an_object", "this is one object of DecayPlugin; name the class"),
        ("mine.py:a_number", "this is int, and should be an engrams.strategies.Strategy"),
        ("yours.py:decay", "there is no file"),
        ("broken.py:no_range", "search['step'] must be a LogUniform(low, high); got (0.1, 1.0)"),
        ("bad_range.py:bad_range", "search['step'] must be of numbers with 0 < low < high; got LogUniform(low=0.0"),
        ("no_build.py:no_build", "a strategy that brings its own network needs a way to build it (build=...)"),
        ("teacher.py:Distillation", "its argument 'teacher' needs an object"),
        ("teacher.py:OfSeveral", "its argument 'teachers' needs an object"),
        ("no_such_module:decay", "there is no module 'no_such_module'"),
        ("ewcc", "no strategy is called 'ewcc'; did you mean 'ewc'?"),
        ("ewc+mine.py", "mine.py is a file: say what in it is the strategy, as in mine.py:my_strategy"),
        ("LwF", "no strategy is called 'LwF'; did you mean 'avalanche-lwf'?"),
        ("ewc+rplay", "no strategy is called 'rplay'; did you mean 'replay'?"),
        ("ewc+ewc", "ewc+ewc: ewc is there twice"),
        ("ewc+joint", "joint learns the whole stream at once"),
        ("ewc+gan-joint", "gan-joint trains a generator alone"),
        ("dgr-vae+avalanche-gem", "dgr-vae and avalanche-gem are whole strategies"),
    ],
)
def test_what_is_no_strategy_is_one_line(mine, name, message):
    done = engrams("run", "split-digits/class", name, "--out", "runs", "--wandb", "disabled")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (mine / "runs").exists()


# --- joined -----------------------------------------------------------------------------------------------------------


def test_joined_strategies_are_a_row_of_their_own_with_the_hyperparameters_of_each(mine):
    names = ["ewc+replay", "replay+ewc", "ewc", "replay"]
    settings = ("--set", "ewc.ewc_lambda=10", "--set", "replay.mem_size=50")
    for name in names:
        own = settings if "+" in name else ("--set", "ewc_lambda=10" if name == "ewc" else "mem_size=50")
        assert engrams("run", "split-digits/domain", name, *QUICK, *own, "--out", name).returncode == 0
    found = {name: only_record(name) for name in names}
    together = found["ewc+replay"]
    assert together.hyperparameters["strategy"] == {
        "ewc": {"ewc_lambda": 10, "fisher": "exact", "fisher_samples": None},
        "replay": {"mem_size": 50},
    }
    assert together.row == "ewc+replay ewc.ewc_lambda=10,replay.mem_size=50,training.epochs=1"
    assert together.accuracy_matrix == found["replay+ewc"].accuracy_matrix, "replay goes first in either"
    assert together.accuracy_matrix not in (found["ewc"].accuracy_matrix, found["replay"].accuracy_matrix)


def test_a_penalty_of_nothing_joined_is_the_other_alone(mine):
    alone = engrams("run", "split-digits/class", "replay", *QUICK, "--out", "alone")
    both = engrams("run", "split-digits/class", "l2+replay", *QUICK, "--set", "l2.l2_lambda=0", "--out", "both")
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    assert only_record("alone").accuracy_matrix == only_record("both").accuracy_matrix


def test_joined_hyperparameters_come_from_each_ones_own_and_are_searched_together(mine):
    entry = load_protocol("split-digits/class")
    together = catalogue.get("ewc+mas")
    h = entry.hyperparameters_of(together).settings()
    for name in ("ewc", "mas"):
        assert h[name] == entry.hyperparameters_of(catalogue.get(name)).settings()
    assert set(together.search) == {"ewc.ewc_lambda", "mas.mas_lambda"}
    (mine / "my.toml").write_text('extends = "split-digits"\n[stream]\nscenarios = ["class"]\n[training]\nepochs = 1\n')
    done = engrams("search", "my.toml", "ewc+mas", "--trials", 3, "--out", "s")
    assert done.returncode == 0, done.stderr
    chosen = load_protocol("my.toml").chosen["ewc+mas"].hyperparameters
    assert set(chosen) == {"ewc.ewc_lambda", "mas.mas_lambda"}
    found = load_protocol("my.toml").hyperparameters_of(together).settings()
    assert (found["ewc"]["ewc_lambda"], found["mas"]["mas_lambda"]) == tuple(chosen.values())


def test_what_was_chosen_for_a_part_is_stale_in_the_joined_one_too(mine):
    settings = ("--set", "training.epochs=1")
    done = engrams("run", "split-digits/class", "ewc+replay", *settings, "--seeds", 1, "--dry-run")
    assert "ewc_lambda of ewc was chosen under other settings than these" in done.stdout
    by_hand = ("--set", "ewc.ewc_lambda=1")
    done = engrams("run", "split-digits/class", "ewc+replay", *settings, *by_hand, "--seeds", 1, "--dry-run")
    assert "chosen under other settings" not in done.stdout


def test_a_path_may_have_a_plus_of_its_own(mine):
    (mine / "a+b").mkdir()
    (mine / "a+b" / "mine.py").write_text(STRATEGY)
    assert catalogue.parts_of("ewc+./a+b/mine.py:decay+replay") == ["ewc", "./a+b/mine.py:decay", "replay"]
    joined = catalogue.get("ewc+./a+b/mine.py:decay")
    assert (joined.name, [part.name for part in joined.parts]) == ("ewc+mine:decay", ["ewc", "mine:decay"])
    settings = {"mine:decay.strength": 0.1}
    (one,) = plan("split-digits/class", ["ewc+./a+b/mine.py:decay"], [0], settings)
    assert one.hyperparameters.settings()["mine:decay"] == {"strength": 0.1, "power": 2}


NESTED = """
from engrams.strategies import Hyperparameters, Strategy

class Buffer(Hyperparameters):
    size: int = 10

class Nested(Hyperparameters):
    buffer: Buffer = Buffer()
    network: str = "small"

nested = Strategy(hyperparameters=Nested, plugin=lambda h: None)
"""


def test_hyperparameters_may_be_nested_and_be_called_as_a_table_of_a_protocol(mine):
    (mine / "nested.py").write_text(NESTED)
    own = {"buffer.size": 3, "network": "large"}
    (one,) = plan("split-digits/class", ["nested.py:nested"], [0], own)
    assert one.hyperparameters.settings() == {"buffer": {"size": 3}, "network": "large"}
    assert one.variant == "buffer.size=3,network=large"
    joined = {f"nested:nested.{key}": value for key, value in own.items()} | {"l2.l2_lambda": 1.0}
    (one,) = plan("split-digits/class", ["nested.py:nested+l2"], [0], joined)
    assert one.hyperparameters.settings()["nested:nested"] == {"buffer": {"size": 3}, "network": "large"}


OWN_NETWORK = """
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from engrams.strategies import Hyperparameters, Strategy

class Experts(Hyperparameters):
    experts: int = 2

class Mean(nn.Module):
    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return sum(network(x) for network in self.networks) / len(self.networks)

experts = Strategy(
    hyperparameters=Experts,
    network=lambda h, network: Mean([network() for _ in range(h.experts)]),
    build=lambda h, template: SupervisedTemplate(**template),
)
"""


def test_a_strategy_may_bring_its_own_network_and_be_joined(mine):
    """Made of the protocol's, as often as it likes, each with values of its own."""
    (mine / "experts.py").write_text(OWN_NETWORK)
    for name, settings in (
        ("experts.py:experts", {"experts": 3}),
        ("ewc+experts.py:experts", {"experts:experts.experts": 3, "ewc.ewc_lambda": 1.0}),
    ):
        (one,) = plan("split-digits/class", [name], [0], settings)
        strategy = make_strategy(one, benchmark_of(one), "cpu", [])
        first, second, _ = strategy.model.networks
        assert first.classifier.out_features == 10
        assert not torch.equal(first.classifier.weight, second.classifier.weight)
        assert len(list(strategy.optimizer.param_groups[0]["params"])) == len([*first.parameters()]) * 3
    done = engrams("run", "split-digits/class", "experts.py:experts", *QUICK, "--out", "runs")
    assert done.returncode == 0, done.stderr
    assert only_record("runs").complete


# --- protocols --------------------------------------------------------------------------------------------------------


def test_a_protocol_that_is_printed_and_run_is_the_same_to_the_bit(mine):
    (mine / "printed.toml").write_text(engrams("protocol", "split-digits/class").stdout)
    for name, out in (("split-digits/class", "theirs"), ("printed.toml", "ours")):
        assert engrams("run", name, "ewc", *QUICK, "--out", out).returncode == 0
    theirs, ours = only_record("theirs"), only_record("ours")
    assert ours.accuracy_matrix == theirs.accuracy_matrix
    assert ours.hyperparameters == theirs.hyperparameters
    assert ours.protocol == "printed"


def test_what_a_file_sets_of_a_joined_strategy_goes_before_what_was_chosen_for_the_extended_one(mine):
    (mine / "base.toml").write_text('extends = "split-digits"\n[stream]\nscenarios = ["task"]\n')
    (mine / "chosen").mkdir()
    (mine / "chosen" / "base.toml").write_text(
        '["ewc+replay"]\nfingerprint = ""\n["ewc+replay".hyperparameters]\n"ewc.ewc_lambda" = 3.0\n'
        '["ewc+replay".evidence]\ncommand = "none"\n'
    )
    ewc_and_replay = catalogue.get("ewc+replay")
    assert load_protocol("base.toml").hyperparameters_of(ewc_and_replay).settings()["ewc"]["ewc_lambda"] == 3.0
    (mine / "mine.toml").write_text('extends = "base.toml"\n[strategies."ewc+replay"]\newc.ewc_lambda = 5.0\n')
    assert load_protocol("mine.toml").hyperparameters_of(ewc_and_replay).settings()["ewc"]["ewc_lambda"] == 5.0


def test_a_file_changes_some_values_of_another(mine):
    (mine / "wide.toml").write_text(
        'extends = "split-digits"\ntitle = "a wider network"\n'
        '[network]\nhidden_size = 30\n[strategies.ewc]\nfisher = "sampled"\n[strategies.mas]\nmas_lambda = 0.5\n'
    )
    wide, digits = load_protocol("wide.toml/task"), load_protocol("split-digits/task")
    assert (wide.network.hidden_size, wide.network.hidden_layers) == (30, digits.network.hidden_layers)
    assert wide.training == digits.training
    assert wide.sources["network.hidden_size"] == "wide.toml"
    ewc = catalogue.get("ewc")
    assert wide.hyperparameters_of(ewc).fisher == "sampled"
    assert wide.hyperparameters_of(ewc).ewc_lambda == digits.hyperparameters_of(ewc).ewc_lambda
    assert wide.hyperparameters_of(catalogue.get("mas")).mas_lambda == 0.5, "what the file sets goes before a search's"
    assert "ewc_lambda of ewc was chosen under other settings" in wide.stale(ewc)
    assert wide.stale(ewc, ["ewc_lambda"]) is None, "set by hand"
    done = engrams("run", "wide.toml", "naive", "--dry-run")
    assert done.returncode == 2
    assert "name one: " in done.stderr
    assert f"{mine / 'wide.toml'}/task" in done.stderr
    assert "wide/task naive seed 0" in engrams("run", "wide.toml/task", "naive", "--dry-run").stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('extends = "split-digit"', "extends: no protocol is called 'split-digit'; did you mean 'split-digits"),
        ('extends = "split-digits/task"', "extend that and set stream.scenarios"),
        ('extends = "my.toml"', "a protocol cannot extend itself"),
        ("extends = 3", "must be the name of a protocol"),
        ('extends = "split-digits"\n[network]\nhidden_sze = 3', "network.hidden_sze: unknown key"),
    ],
)
def test_what_cannot_be_extended_is_one_line(mine, content, message):
    (mine / "my.toml").write_text(content)
    with pytest.raises(ProtocolError, match=message):
        load_protocol("my.toml")
    (mine / "a.toml").write_text('extends = "b.toml"')
    (mine / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(ProtocolError, match="a protocol cannot extend itself"):
        load_protocol("a.toml")
    (mine / "split-digits.toml").write_text('extends = "split-mnist"')
    with pytest.raises(ProtocolError, match="is the name of a protocol of Engrams"):
        load_protocol("split-digits.toml")


def test_a_protocol_whose_records_would_be_taken_for_copies_of_wandbs_is_refused(mine):
    (mine / "wandb.toml").write_text('extends = "split-digits"')
    with pytest.raises(ProtocolError, match=r"folders called wandb are W&B's, .*; call the file something else"):
        load_protocol("wandb.toml/class")


# --- settings ---------------------------------------------------------------------------------------------------------


def test_own_settings_lie_apart_and_stand_beside_the_protocols_own(mine):
    for settings in ((), ("--set", "ewc_lambda=10")):
        done = engrams(
            "run", "permuted-digits", "ewc", "--seeds", "7-7", "--experiences", 2, *settings, "--wandb", "disabled"
        )
        assert done.returncode == 0, done.stderr
    frame = read_records("runs").frame()
    assert list(frame["strategy"]) == ["ewc ewc_lambda=10,experiences=2", "ewc experiences=2"]
    assert list(frame["seed"]) == [7, 7]
    assert [len(one.accuracy_matrix) for one in read_records("runs")] == [2, 2]
    shown = engrams("table", "runs").stdout
    assert "ewc ewc_lambda=10" in shown
    assert (
        "complete" in engrams("run", "permuted-digits", "ewc", "--seeds", "7-8", "--experiences", 2, "--dry-run").stdout
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "epochs=3"], "no strategy here has 'epochs' to set; the protocol's is training.epochs"),
        (["--set", "ewc_lambd=3"], "no strategy here has 'ewc_lambd' to set; there are ewc_lambda, fisher"),
        (
            ["--set", "ewc_lambda=-3"],
            "split-digits/class: ewc: ewc_lambda: Input should be greater than or equal to 0 (got -3)",
        ),
        (["--set", "training.epoch=3"], "--set training.epoch: unknown key; did you mean 'training.epochs'?"),
        (["--set", "training.epochs=many"], "--set training.epochs: Input should be a valid integer"),
        (["--set", "ewc_lambda"], "--set ewc_lambda: write KEY=VALUE"),
        (["--set", "ewc_lambda=1", "--set", "ewc_lambda=2"], "ewc_lambda is set twice"),
        (["--set", "ewc_lambda=1", "--set", '{"ewc_lambda": 2}'], "ewc_lambda is set twice"),
        (["--seeds", "9-5"], "--seeds 9-5: give how many (3) or which (5-9,12"),
        (["--seeds", "0"], "--seeds 0: give how many"),
        (["--seeds", "one"], "--seeds one: give how many"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(options, message):
    done = engrams("run", "split-digits/class", "ewc", *options, "--dry-run")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_network_of_another_kind_takes_the_place_of_the_whole():
    mlp = {"kind": "mlp", "hidden_size": 7, "hidden_layers": 1}
    entry = load_protocol("split-cifar100/task", {f"network.{key}": value for key, value in mlp.items()})
    assert mlp | entry.network.model_dump(exclude_none=True) == mlp
    assert entry.network.hidden_size == 7


def test_a_variant_names_no_folder_of_ones_own_and_its_folder_is_never_too_long(mine):
    images, labels = np.zeros((20, 8, 8), dtype=np.uint8), np.arange(20) % 10
    columns = {"images": images, "labels": labels}
    arrays = {f"{part}_{name}": column for part in ("train", "test") for name, column in columns.items()}
    np.savez(mine / "my.npz", **arrays)
    (one,) = plan("split-digits/class", ["naive"], [0], {"dataset": f"npz:{mine / 'my.npz'}"})
    assert one.variant == "dataset=npz:my.npz"
    long = [store.folder_of(mine, "p", "s", 0, f"{'x=1,' * 200}last={last}") for last in (1, 2)]
    assert long[0] != long[1]
    assert all(len(part.encode()) <= 200 for folder in long for part in folder.parts)


def test_seeds():
    assert seeds_of("3") == [0, 1, 2]
    assert seeds_of("5-9,12") == [5, 6, 7, 8, 9, 12]
    assert seeds_of("7,") == seeds_of("7-7") == [7]
    assert seeds_of(" 3") == [0, 1, 2]
    with pytest.raises(OptionError):
        seeds_of(",")


# --- Python -----------------------------------------------------------------------------------------------------------


def test_everything_in_one_call(mine):
    records = run(
        load_protocol("split-digits/class", {"training.epochs": 1}),
        ["naive", "joint", "replay"],
        seeds=[3, 4],
        settings={"mem_size": 50},
        progress=False,
    )
    frame = records.frame()
    assert list(frame["strategy"].unique()) == [
        "naive training.epochs=1",
        "joint training.epochs=1",
        "replay mem_size=50,training.epochs=1",
    ]
    assert set(frame["seed"]) == {3, 4}
    matrices = records.matrices("split-digits/class", "naive training.epochs=1")
    assert matrices.shape == (2, 5, 5)
    assert frame.groupby("strategy")["ACC"].mean()["naive training.epochs=1"] == pytest.approx(matrices[:, -1].mean())
    assert frame.loc[frame["upper_bound"], "strategy"].unique() == ["joint training.epochs=1"]
    assert np.isnan(frame.loc[frame["upper_bound"], "BWT"]).all()
    again = read_records("runs").frame()
    pd.testing.assert_frame_equal(
        again.sort_values(["strategy", "seed"], ignore_index=True),
        frame.sort_values(["strategy", "seed"], ignore_index=True),
    )
    with pytest.raises(UserError, match="there is no complete record of ewc"):
        records.matrices("split-digits/class", "ewc")


def test_folders_are_told_apart(mine):
    for out in ("a", "b"):
        assert engrams("run", "split-digits/class", "naive", *QUICK, "--out", out).returncode == 0
    shown = engrams("table", "a", "b").stdout
    assert "naive training.epochs=1 (a)" in shown
    assert "naive training.epochs=1 (b)" in shown


def test_matrices_as_a_picture_and_as_numbers(mine):
    assert engrams("run", "split-digits/class", "naive", "replay", *QUICK).returncode == 0
    done = engrams("matrix", "runs", "--out", "m.png")
    assert done.returncode == 0, done.stderr
    assert (mine / "m.png").stat().st_size > 10_000
    written = pd.read_csv(mine / "m.csv")
    naive = written[written["strategy"].str.startswith("naive")].pivot(
        index="trained", columns="judged", values="accuracy"
    )
    assert np.allclose(naive.to_numpy(), read_records("runs")[0].accuracy_matrix)
    missing = engrams("matrix", "runs", "--strategy", "naiv")
    assert missing.returncode == 2
    assert "there is no complete record of the strategy 'naiv'; there are naive training.epochs=1, re" in missing.stderr
