"""A benchmark of Avalanche's, or an outsider's, in place of a data set and a stream."""

import json
import re
from dataclasses import replace

import pytest
import torch

from engrams.benchmarks.cli.app import main
from engrams.benchmarks.data import own_benchmarks
from engrams.benchmarks.data.loading import columns_of
from engrams.benchmarks.data.names import DataError
from engrams.benchmarks.jobs import sizes
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan, run_of
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.reports import store
from engrams.strategies import catalogue
from tests.test_runs import engrams

OUTSIDERS = """
import torch
from types import SimpleNamespace

from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from torch.utils.data import TensorDataset


LABELS = {
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.byte(),
    "one-hot": lambda y: torch.eye(2)[y],
    "column": lambda y: y[:, None],
    "below": lambda y: y - 1,
    "huge": lambda y: 50000 * y,
    "other": lambda y: 1 - y,
}
SAMPLES = {
    "double": lambda x: x.double(),
    "bytes": lambda x: (255 * x).byte(),
    "nan": lambda x: x / 0 * 0,
    "narrower": lambda x: x[..., :7],
}
DATA = {
    "noisy": lambda x, y: Noisy(x, y),
    "broken": lambda x, y: [None] * len(x),
    "text": lambda x, y: [(image, "a bar") for image in x],
    "none": lambda x, y: [(image, None) for image in x],
    "pairs": lambda x, y: [((image, image), label) for image, label in zip(x, y)],
    "weighted": lambda x, y: TensorDataset(x, y, torch.ones(len(x))),
}


def bars(experiences=3, size=40, task_labels=True, tests=None, what="", shift=0, noise=0, swapped=False):
    # bright rows or bright columns of 8x8 images, in another place of the image in every experience
    def images(experience, count, seed, shift=0):
        random = torch.Generator().manual_seed(seed + noise)
        y = torch.arange(count) % 2
        x = torch.rand(count, 1, 8, 8, generator=random) / 2
        x[y == 0, :, 2 * experience] = 1
        x[y == 1, :, :, 2 * experience] = 1
        if swapped:  # class 0 comes last
            y = y + 2 * (experiences - 1 - experience)
        targets = y
        y = LABELS.get(what, lambda y: y)(y)
        if what in ("below", "huge"):
            targets = y
        if experience or what != "narrower":
            x = SAMPLES.get(what, lambda x: x)(x)
        attributes = [DataAttribute(targets.tolist(), "targets")]
        if task_labels:
            attributes.append(DataAttribute([experience + shift] * count, "targets_task_labels", use_in_getitem=True))
        return AvalancheDataset([DATA.get(what, TensorDataset)(x, y)], data_attributes=attributes)

    train = [images(experience, 60, experience) for experience in range(experiences)]
    test = [images(experience, size, 100 + experience, shift) for experience in range(tests or experiences)]
    return benchmark_from_datasets(train=train, test=test)


class Noisy(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.rand(()), y


def none():
    return [1, 2]


def of_seed(seed):
    return bars(experiences=3 if seed == 0 else 4)


def backwards():
    made = bars(task_labels=False, swapped=True)
    train, test = ([one.dataset for one in stream] for stream in made.streams.values())
    return benchmark_from_datasets(train=train, test=test[::-1])


def whole_test_set(lacks=None):
    made = bars(task_labels=False, swapped=True)
    train, test = ([one.dataset for one in stream] for stream in made.streams.values())
    kept = [data for place, data in enumerate(test) if place != lacks]
    whole = kept[1].concat(kept[0])
    return benchmark_from_datasets(train=train, test=[whole if len(kept) == 2 else whole.concat(kept[2])])


def of_no_choice(seed=None):
    assert seed is None, "a seed is not required"
    return bars()


def unseeded():
    import os
    return bars(noise=int.from_bytes(os.urandom(4), "big"))


def needs(experiences):
    return bars(experiences)


def online(alone=False):
    benchmark = bars()
    pieces = split_online_stream(benchmark.train_stream, experience_size=10, seed=0)
    return pieces if alone else SimpleNamespace(train_stream=pieces, test_stream=benchmark.test_stream)


def fails():
    raise RuntimeError("out of paint")
"""
FILE = """
title = "Bars"
benchmark = "bars.py:bars"

[stream]
scenarios = ["task"]
validation_fraction = 0.2

[network]
hidden_size = 20
hidden_layers = 1

[training]
optimizer = "adam"
learning_rate = 1e-2
batch_size = 10
epochs = 3
schedule = "constant"
reset_optimizer = false

[strategies]
ewc = { ewc_lambda = 100.0 }
mas = { mas_lambda = 1.0 }
l2 = { l2_lambda = 0.1 }
replay = { mem_size = 30 }
avalanche-si = { si_lambda = 1.0, eps = 0.1 }
avalanche-lwf = { alpha = 1.0, temperature = 2.0 }
avalanche-agem = { patterns_per_exp = 10, sample_size = 10 }
[strategies.dgr-vae]
generator_epochs = 2
generator_batch_size = 10
generator_learning_rate = 1e-3
latent_size = 4
hidden_sizes = [20]
likelihood = "gaussian"
"""


@pytest.fixture
def outsiders(tmp_path):
    """Writes the outsider's protocol, changed; returns its path."""
    (tmp_path / "bars.py").write_text(OUTSIDERS, encoding="utf-8")

    def write(*changes):
        text = FILE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "bars.toml").write_text(text, encoding="utf-8")
        own_benchmarks._both.cache_clear()
        own_benchmarks.experience_count.cache_clear()
        return tmp_path / "bars.toml"

    return write


TEN = ["naive", "joint", "frozen", "l2", "ewc", "mas", "replay", "avalanche-lwf", "avalanche-si", "avalanche-agem"]


def test_ten_strategies_on_an_outsiders_benchmark_by_one_command(outsiders, tmp_path, monkeypatch, capsys):
    path = outsiders()
    command = ["run", path, *TEN, "--seeds", 1, "--workers", 1, "--out", tmp_path / "runs", "--wandb", "disabled"]
    monkeypatch.setattr("sys.argv", ["engrams", *map(str, command)])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr().out
    assert not stop.value.code, shown
    records = {record.strategy: record for record in store.read_all(tmp_path / "runs")}
    assert set(records) == set(TEN)
    assert all(record.complete for record in records.values())
    assert len(records["ewc"].accuracy_matrix) == 3
    assert records["joint"].acc > 0.9, "it can be learned"
    assert records["naive"].hyperparameters["dataset"] == "bars.py:bars"
    assert len(records["naive"].hyperparameters["dataset_fingerprint"]) == 12
    assert records["naive"].hyperparameters["stream"]["kind"] == "benchmark"
    assert "avalanche-agem" in shown


@pytest.mark.parametrize(
    ("arguments", "asked", "message"),
    [
        (
            "task_labels = false",
            ["naive"],
            "learning needs task labels, one of its own for every experience; .*bars has 0",
        ),
        (
            "experiences = 4",
            ["avalanche-agem", "--set", "sample_size=2"],
            "bars: avalanche-agem: sample_size 2 is below 3, the number of earlier experiences",
        ),
        ("", ["dgr-vae", "--stream-from-disk"], "dgr-vae learns to make images and needs an experience's in memory"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_what_stops_a_run_is_said_before_the_first_begins(outsiders, tmp_path, arguments, asked, message, dry):
    path = outsiders(('["task"]', f'["task"]\narguments = {{ {arguments} }}'))
    done = engrams("run", path, *asked, "--out", tmp_path / "runs", "--wandb", "disabled", *dry)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_without_task_labels(outsiders, tmp_path, scenario):
    path = outsiders(('["task"]', f'["{scenario}"]\narguments = {{ task_labels = false }}'))
    record = execute(run_of(protocol.get(str(path)), "replay"), tmp_path / "runs", "cpu", "disabled", lambda _: None)
    assert record.complete, record.reason
    assert record.acc > 0.8


def test_looking_at_samples_draws_no_random_number_of_the_run(outsiders):
    run = run_of(protocol.get(str(outsiders(('["task"]', '["task"]\narguments = { what = "noisy" }')))), "naive")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert run.experiences == 3
    assert len(benchmark_of(run).train_stream) == 3
    assert torch.equal(torch.rand(3), expected)


def test_a_benchmark_that_is_another_one_every_time_is_refused(outsiders):
    run = run_of(protocol.get(str(outsiders(('"bars.py:bars"', '"bars.py:unseeded"')))), "naive")
    with pytest.raises(
        ProtocolError, match="is another one whenever it is asked for, and every run would learn its own"
    ):
        sizes.check([run.data], False)
    sizes.check([run_of(protocol.get(str(outsiders())), "naive").data], False)


def test_every_seed_has_as_many_experiences(outsiders):
    runs = plan(str(outsiders(('"bars.py:bars"', '"bars.py:of_seed"'))), ["naive"], [0, 1])
    assert len(benchmark_of(runs[0]).train_stream) == 3
    with pytest.raises(ProtocolError, match="has 4 experiences with the seed 1 and 3 with the seed 0"):
        benchmark_of(runs[1])


def test_of_one_test_set_each_experience_is_judged_on_its_own_classes(outsiders):
    """Avalanche's CORe50 and OpenLORIS have such."""
    path = outsiders(('"bars.py:bars"', '"bars.py:whole_test_set"'), ('["task"]', '["class"]'))
    benchmark = benchmark_of(run_of(protocol.get(str(path)), "naive"))
    judged = [experience.dataset for experience in benchmark.test_stream]
    assert [sorted(map(int, data.targets.uniques)) for data in judged] == [[4, 5], [2, 3], [0, 1]]
    assert [len(data) for data in judged] == [40, 40, 40]
    learned = benchmark.train_stream[0].dataset
    assert {int(y) for _, y, *_ in judged[0]} == {int(y) for _, y, *_ in learned}
    path = outsiders(
        ('"bars.py:bars"', '"bars.py:whole_test_set"'), ('["task"]', '["class"]\narguments = { lacks = 1 }')
    )
    with pytest.raises(
        ProtocolError, match=r"experience 1 of .* has class 2 where it is learned and none of its classes"
    ):
        benchmark_of(run_of(protocol.get(str(path)), "naive"))


def test_a_seed_is_not_pressed_on_a_benchmark_that_takes_none(outsiders):
    """Avalanche's CLEAR has an argument for it, and refuses one under its default protocol of evaluation."""
    path = outsiders(('"bars.py:bars"', '"bars.py:of_no_choice"'))
    assert len(benchmark_of(run_of(protocol.get(str(path)), "naive")).train_stream) == 3
    path = outsiders(('"bars.py:bars"', '"bars.py:of_no_choice"'), ('["task"]', '["task"]\narguments = { seed = 1 }'))
    with pytest.raises(DataError, match="AssertionError: a seed is not required"):
        benchmark_of(run_of(protocol.get(str(path)), "naive"))


def test_a_held_out_part_without_samples_is_one_line(outsiders):
    path = outsiders(("validation_fraction = 0.2", "validation_fraction = 0.01"))
    from engrams.benchmarks.runs import Run

    naive = catalogue.get("naive")
    with pytest.raises(ProtocolError, match=r"0.01 of an experience of 60 samples is none to choose by; raise it"):
        benchmark_of(Run(protocol.get(str(path)), naive, 0, naive.hyperparameters(), "validation"))


def test_a_row_is_called_the_same_however_the_file_of_its_benchmark_is_named(outsiders, monkeypatch):
    path = outsiders()
    monkeypatch.chdir(path.parent)
    file = next(path.parent.glob("*.py"))
    for name in (file.name, f"./{file.name}", str(file)):
        (one,) = plan(str(path), ["naive"], [0], {"benchmark": f"{name}:bars"})
        assert one.variant == f"benchmark={file.name}:bars"


def test_forward_transfer_is_0_whichever_experience_has_class_0(outsiders, tmp_path):
    """Before training every unit is masked, and the first is answered; that is no knowledge of a later experience."""
    path = outsiders(('["task"]', '["class"]\narguments = { swapped = true }'))
    record = execute(run_of(protocol.get(str(path)), "naive"), tmp_path / "runs", "cpu", "disabled", lambda _: None)
    assert record.complete, record.reason
    assert record.accuracy_at_initialisation[1:] == [0, 0]
    assert record.metrics["FWT"] == 0


def test_where_classes_come_again_nothing_learned_is_no_forward_transfer(outsiders, tmp_path):
    """The first class is answered before training, which is right for half of each experience's samples."""
    path = outsiders(('["task"]', '["class"]'))
    run = run_of(protocol.get(str(path), {"training.learning_rate": 1e-12}), "naive")
    record = execute(run, tmp_path / "runs", "cpu", "disabled", lambda _: None)
    assert record.accuracy_at_initialisation == [0.5, 0.5, 0.5]
    assert record.accuracy_matrix[0] == record.accuracy_matrix[2]
    assert record.metrics["FWT"] == pytest.approx(record.accuracy_matrix[0][1] - 0.5)


def test_crops_need_to_know_what_black_is(outsiders):
    run = plan(str(outsiders()), ["naive"], [0], {"training.random_crops": 2})[0]
    with pytest.raises(ProtocolError, match=r"training.random_crops pads with black and must know what black"):
        make_strategy(run, benchmark_of(run), "cpu", [])
    run = plan(str(outsiders()), ["naive"], [0], {"training.random_crops": 2, "images.mean": 0.3})[0]
    make_strategy(run, benchmark_of(run), "cpu", [])


def test_an_outsiders_experiences_pass_over_by_degrees(outsiders):
    changes = [('["task"]', '["domain"]\nboundaries = "gradual"\nwidth = 1.0'), ("epochs = 3", "epochs = 1")]
    path = outsiders(*changes)
    run = run_of(protocol.get(str(path)), "naive")
    for judge in ("test", "validation"):
        benchmark = benchmark_of(replace(run, judge=judge))
        experiences = [[int(sample[-1]) for sample in part.dataset] for part in benchmark.train_stream]
        counts = [[labels.count(task) for task in range(3)] for labels in experiences]
        size = 60 if judge == "test" else 48
        assert [sum(count) for count in counts] == [size] * 3
        assert [sum(column) for column in zip(*counts, strict=True)] == [size] * 3
        assert 0 < counts[0][1] < size / 4
        assert counts[1][0] == counts[0][1]
        judged = [{int(sample[-1]) for sample in part.dataset} for part in benchmark.streams[judge]]
        assert judged == [{0}, {1}, {2}]


def test_validation_is_avalanches_own_split_and_has_nothing_of_the_test_stream(outsiders):
    entry = protocol.get(str(outsiders()))
    naive = catalogue.get("naive")
    from engrams.benchmarks.runs import Run

    def images(judge):
        benchmark = benchmark_of(Run(entry, naive, 0, naive.hyperparameters(), judge))
        assert set(benchmark.streams) == {"train", judge}
        return {
            name: [set(map(tuple, columns_of(one.dataset)[0].flatten(1).tolist())) for one in part]
            for name, part in benchmark.streams.items()
        }

    chosen, reported = images("validation"), images("test")
    for train, held_out, whole, test in zip(
        chosen["train"], chosen["validation"], reported["train"], reported["test"], strict=True
    ):
        assert (len(train), len(held_out)) == (48, 12)
        assert train | held_out == whole
        assert not whole & test
    assert images("validation") == chosen, "whatever the seed of the run"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bars.py:bars"', '"avalanche:RotatedMNITS"', "Avalanche's is called 'RotatedMNITS'; did you mean 'Rotated"),
        ('"bars.py:bars"', '"avalanche:SplitMnist"', "called 'SplitMnist'; did you mean 'SplitMNIST'"),
        ('"bars.py:bars"', '"bars.py:bras"', "bars.py has no 'bras'; did you mean 'bars'"),
        ('"bars.py:bars"', '"bars.py:none"', "returns a list without a train_stream; it has to return an Avalanche"),
        (
            '"bars.py:bars"',
            '"bars.py:online"',
            "an online stream, .* before it is split: training.batch_size is a piece",
        ),
        (
            '"bars.py:bars"\n\n[stream]',
            '"bars.py:online"\n\n[stream]\narguments = { alone = true }',
            "makes an online stream, whose experiences come in pieces",
        ),
        ('"bars.py:bars"', '"bars.py:fails"', r"fails in .*bars.py, line \d+: RuntimeError: out of paint"),
        ('["task"]', '["task"]\narguments = { experience = 4 }', "arguments.experience: .*did you mean 'experiences'"),
        (
            '["task"]',
            '["task"]\narguments = { task_labels = false }',
            "learning needs task labels, one of its own for every experience; .*bars has 0, 0, 0",
        ),
        ('["task"]', '["task"]\narguments = { tests = 2 }', "has 3 experiences to learn and 2 to be judged on"),
        (
            '["task"]',
            '["task"]\narguments = { shift = 1 }',
            "experience 0 of .*bars has the task label 0 where it is learned and 1 in the test stream, whose head",
        ),
        ('["task"]', '["task"]\narguments = { what = "other" }', "has the label 1, and the targets .* say 0"),
        (
            '["task"]',
            '["task"]\narguments = { what = "huge" }',
            "has a class 50000; classes are numbered from 0, below",
        ),
        (
            '["task"]',
            '["task"]\narguments = { what = "double" }',
            "are torch.float64 tensors; a network takes float32",
        ),
        ('["task"]', '["task"]\narguments = { what = "nan" }', "sample 0 of .* is not finite"),
        ('["task"]', '["task"]\narguments = { what = "narrower" }', r"has shape \[1, 8, 7\], those before \[1, 8, 8\]"),
        ('["task"]', '["task"]\narguments = { what = "broken" }', "sample 0 of .* cannot be read: AttributeError"),
        (
            '"bars.py:bars"',
            '"bars.py:backwards"',
            "experience 0 of .* has class 4 where it is learned and none of .* in the test_stream, but class 0",
        ),
        ('"bars.py:bars"', '"bars.py:needs"', "stream.arguments.experiences: missing; .*needs needs it"),
        ('["task"]', '["task"]\narguments = { size = 0 }', "experience 0 of .*bars's test_stream has no samples"),
        ('["task"]', '["task"]\narguments = { what = "bytes" }', "are torch.uint8 tensors; a network takes float32"),
        (
            '["task"]',
            '["task"]\narguments = { what = "int32" }',
            r"labels of .*bars, experience 0 of its train_stream, are torch.int32 tensors of",
        ),
        ('["task"]', '["task"]\narguments = { what = "uint8" }', r"are torch.uint8 tensors of shape \[\]; .*y.long"),
        ('["task"]', '["task"]\narguments = { what = "pairs" }', "are of type tuple; a network takes float32"),
        (
            '["task"]',
            '["task"]\narguments = { what = "weighted" }',
            "have 4 parts, .* take three: an input, a label, a",
        ),
        (
            '["task"]',
            '["task"]\narguments = { what = "one-hot" }',
            r"are torch.float32 tensors of shape \[2\]; a label",
        ),
        (
            '["task"]',
            '["task"]\narguments = { what = "column" }',
            r"are torch.int64 tensors of shape \[1\]; a label is",
        ),
        (
            '["task"]',
            '["task"]\narguments = { what = "text" }',
            "are of type str; a label is the number of its class",
        ),
        ('["task"]', '["task"]\narguments = { what = "none" }', "are of type NoneType; a label is the number"),
        (
            '["task"]',
            '["task"]\narguments = { what = "below" }',
            "train_stream, has a class -1; classes are numbered from 0",
        ),
    ],
)
def test_what_cannot_be_is_one_line(outsiders, old, new, message):
    with pytest.raises((ProtocolError, DataError), match=message) as caught:
        benchmark_of(plan(str(outsiders((old, new))), ["naive"], [0])[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Bars"', 'title = "Bars"\ndataset = "digits"', "a benchmark or a dataset, not both"),
        ("[stream]", "[images]\npad = 2\n[stream]", "images.pad: a benchmark prepares its images itself"),
        ('"bars.py:bars"', '"bars"', "benchmark = 'avalanche:NAME', 'module:function' or"),
        ('["task"]', '["task", "class"]', "stream.scenarios: .*at most 1 item"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(outsiders, old, new, message):
    with pytest.raises(ProtocolError, match=message) as caught:
        protocol.read(outsiders((old, new)))
    assert "\n" not in str(caught.value)


def test_what_makes_images_must_know_what_black_and_white_are(outsiders, tmp_path):
    run = run_of(protocol.get(str(outsiders())), "dgr-vae")
    record = execute(run, tmp_path / "runs", "cpu", "disabled", lambda _: None)
    assert "dgr-vae makes images and must know what black and white are" in record.reason
    run = run_of(protocol.get(str(outsiders(("[stream]", "[images]\nmean = 0.0\nstd = 1.0\n[stream]")))), "dgr-vae")
    record = execute(run, tmp_path / "runs", "cpu", "disabled", lambda _: None)
    assert record.complete, record.reason


def test_the_printed_protocol_is_read_again(outsiders, tmp_path):
    entry = protocol.get(str(outsiders(('["task"]', '["task"]\narguments = { experiences = 4 }'))))
    again = tmp_path / "again.toml"
    again.write_text(protocol.as_toml(entry), encoding="utf-8")
    naive = catalogue.get("naive")
    assert protocol.get(str(again)).deciding(naive) == entry.deciding(naive)
    run = plan(str(again), ["naive"], [0], {"stream.arguments.experiences": 2})[0]
    assert run.experiences == 2


# --- Avalanche's ------------------------------------------------------------------------------------------------------

MNIST = """
extends = "split-mnist"
title = "Avalanche's"
BENCHMARK
[stream]
scenarios = ["SCENARIO"]
validation_fraction = 0.1
ARGUMENTS

[training]
epochs = 1
"""


def of_mnist(tmp_path, name, benchmark, scenario, arguments):
    text = MNIST.replace("BENCHMARK", benchmark).replace("SCENARIO", scenario).replace("ARGUMENTS", arguments)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return protocol.get(str(tmp_path / name))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_avalanches_split_mnist_gives_our_record_to_the_bit(idx_files, fresh_data, tmp_path, scenario):
    fresh_data.setenv("ENGRAMS_DATA", str(idx_files(train=400, test=100)))
    own_benchmarks._both.cache_clear()
    zero_based = "true" if scenario == "task" else "false"
    theirs = of_mnist(
        tmp_path,
        "theirs.toml",
        'benchmark = "avalanche:SplitMNIST"',
        scenario,
        f"arguments = {{ n_experiences = 5, shuffle = false, return_task_id = {zero_based}, "
        f"class_ids_from_zero_in_each_exp = {zero_based} }}",
    )
    ours = of_mnist(
        tmp_path,
        "ours.toml",
        "[images]\npad = 0\nmean = 0.1307\nstd = 0.3081",
        scenario,
        "",
    )
    for strategy in ("naive", "replay"):
        records = [
            execute(run_of(entry, strategy), tmp_path / "runs", "cpu", "disabled", lambda _: None)
            for entry in (ours, theirs)
        ]
        assert all(record.complete for record in records), [record.reason for record in records]
        assert records[0].accuracy_matrix == records[1].accuracy_matrix


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("SplitMNIST", "put them there$"),
        ("SplitCIFAR10", r"put them there \(Avalanche needs torchvision's own files; dataset = 'cifar10' .*Parquet"),
    ],
)
def test_avalanches_data_that_are_nowhere_are_one_line(tmp_path, monkeypatch, capsys, name, ending):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("ENGRAMS_DATA", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    message = rf"the data of avalanche:{name} are not in {tmp_path} and could not be downloaded \(.*\); {ending}"
    with pytest.raises(DataError, match=message) as caught:
        own_benchmarks.experience_count(f"avalanche:{name}", '{"n_experiences": 5}', False)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_avalanches_rotated_mnist(idx_files, fresh_data, tmp_path):
    """Its angles follow the run's seed, unless the protocol has one; the first is as it is."""
    fresh_data.setenv("ENGRAMS_DATA", str(idx_files(train=60, test=30)))
    own_benchmarks._both.cache_clear()
    arguments = "arguments = { n_experiences = 2, rotations_list = [0, 90] }"
    entry = of_mnist(tmp_path, "rotated.toml", 'benchmark = "avalanche:RotatedMNIST"', "domain", arguments)
    benchmark = benchmark_of(run_of(entry, "naive"))
    first, turned = (torch.stack([x for x, *_ in experience.dataset.eval()]) for experience in benchmark.test_stream)
    torch.testing.assert_close(turned, first.rot90(1, (2, 3)))
    record = execute(run_of(entry, "ewc", 0, {"ewc_lambda": 1.0}), tmp_path / "runs", "cpu", "disabled", lambda _: None)
    assert record.complete, record.reason
    assert json.loads(json.dumps(record.hyperparameters))["stream"]["arguments"]["rotations_list"] == [0, 90]
