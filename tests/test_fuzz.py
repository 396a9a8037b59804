"""Whatever a file or a command line says: one clear line and a status, no traceback, no hang, nothing else on disk.

What is bad is mostly what was good and was cut, flipped, doubled, renamed or exchanged for the absurd: bytes without
any order get no further than the first check. ``make test-slow`` has 200 of them, always the same ones; ``make chaos``
has 2,000 others (the variable ENGRAMS_FUZZ says how many), and prints their seed.
"""

import copy
import io
import json
import os
import re
import signal
import string
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.own import load_own
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.training.checkpoint import FORMAT, Checkpoints
from engrams.reports import UserError, store
from engrams.reports.matrix import metrics
from tests.test_records import WHOLE, record, written
from tests.test_runs import engrams

pytestmark = pytest.mark.slow

INPUTS = int(os.environ.get("ENGRAMS_FUZZ", 200))
SECONDS = 30
"""After which an input hangs."""
DEEP = 20_000
ODD = (
    *(True, False, 0, -1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0", "nan", "../..", "a\nb", "\0", "\x1b[2J", "é✓𝟘", "٣", "[red]", "%s{0}", "a" * 3000, "a:b", ":"),
    *([], [[]], [0.5], ["x"], [1, "x"], {}, {"": 0}, {"x": {"x": []}}),
)
"""Values that few expect."""
DIGITS = "9" * 5000
"""More than Python turns into a number."""


def bad(share: float):
    """A share of all inputs for one test, each counted only if it is refused; see :func:`refused`."""
    return settings(
        max_examples=max(1, round(INPUTS * share)),
        derandomize="ENGRAMS_FUZZ" not in os.environ,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # they are small enough as they are
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def no_hang():
    """Ends what takes too long, wherever it is."""

    def ring(*_):
        raise AssertionError(f"it hangs: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(read, *arguments) -> str:
    """Returns the one line in which a function refuses what it is given; what is accepted counts as no bad input."""
    with no_hang():
        try:
            read(*arguments)
        except UserError as error:
            line = str(error)
            assert len(line.strip().splitlines()) == 1
            assert "Traceback" not in line
            return line
    reject()


def command(*words: str) -> tuple[int, str, str]:
    """Calls the command line in this process; returns its status, and what it printed."""
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with no_hang():
            done = engrams(*words)
    finally:
        signal.signal(signal.SIGTERM, sigterm)
    done.stdout.encode()  # a terminal would refuse what this does
    return int(done.returncode), done.stdout, done.stderr


def refused_by_command(*words: str) -> str:
    """Returns the line in which the command line refuses; what it accepts counts as no bad input."""
    status, _, said = command(*words)
    if status == 0:
        reject()
    assert status == 2, said
    assert "─ Error ─" in said or re.fullmatch(r"error: .+\n", said), said  # Typer's box, or our line
    return said


# --- what is made of what was good ------------------------------------------------------------------------------------


@st.composite
def damaged_bytes(draw, good: bytes) -> bytes:
    """Bytes that were cut, flipped, doubled, wiped, exchanged or added to."""
    found = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        size = len(found)
        start = draw(
            st.one_of(st.integers(0, min(size, 64)), st.integers(0, size), st.integers(max(0, size - 64), size))
        )
        stop = min(size, start + draw(st.sampled_from([1, 2, 4, 8, 64, 1000, size])))
        kind = draw(st.sampled_from(["cut", "flip", "double", "wipe", "fill", "insert", "exchange"]))
        if kind == "cut":
            del found[start:]
        elif kind == "flip" and start < size:
            found[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "double":
            found[start:start] = found[start:stop]
        elif kind in ("wipe", "fill"):
            found[start:stop] = (b"\0" if kind == "wipe" else b"\xff") * (stop - start)
        elif kind == "insert":
            found[start:start] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "exchange":
            del found[start:stop]
    return bytes(found)


def places(value: Any, path: tuple = ()):
    """Every key and index in nested tables and lists, as paths."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*path, key)
        yield from places(below, (*path, key))


@st.composite
def damaged_values(draw, good: dict) -> dict:
    """Tables with values of the wrong kind or size, keys that are missing, renamed, or of somewhere else."""
    found = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        paths = list(places(found))
        if not paths:
            break
        *above, last = draw(st.sampled_from(paths))
        holder: Any = found
        for key in above:
            holder = holder[key]
        kind = draw(st.sampled_from(["exchange", "exchange", "exchange", "remove", "rename", "add", "move"]))
        if kind == "exchange":
            holder[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "remove":
            del holder[last]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from([f"{last}s", last.upper(), "", "é", "a\nb"]))] = holder.pop(last)
        elif kind == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["extends", "kind", "benchmark", "x"]))] = copy.deepcopy(
                draw(st.sampled_from(ODD))
            )
        elif kind == "add":
            holder.insert(last, copy.deepcopy(draw(st.sampled_from(ODD))))
        elif kind == "move":
            from_there: Any = found
            for key in draw(st.sampled_from(paths)):
                from_there = from_there[key] if not isinstance(from_there, dict) or key in from_there else {}
            holder[last] = copy.deepcopy(from_there)
    return found


def deep(text: str, at: str) -> st.SearchStrategy[str]:
    """Texts in which what stands for ``at`` is nested without end, or a number without end."""
    return st.sampled_from(
        [
            text.replace(at, what, 1)
            for what in ("[" * DEEP, "[" * 900 + "]" * 900, '{"x":' * DEEP, "{x=" * DEEP, DIGITS)
        ]
    )


# --- files ------------------------------------------------------------------------------------------------------------

PROTOCOL = """\
title = "mine"
extends = "split-digits"
[images]
pad = 1
mean = [0.1]
[stream]
kind = "split"
scenarios = ["task", "class"]
classes_per_experience = 2
class_order = "seeded"
validation_fraction = 0.1
[network]
kind = "mlp"
hidden_size = 10
hidden_layers = 1
[training]
optimizer = "sgd"
learning_rate = 0.1
batch_size = 10
epochs = 1
schedule = "constant"
reset_optimizer = true
momentum = 0.5
[judging]
every = 10
samples = 20
[strategies.ewc]
ewc_lambda = 10.0
[sources]
"training" = "a paper"
"""


def test_a_protocol_file(tmp_path):
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    tables = registry.tomllib.loads(PROTOCOL)
    contents = st.one_of(
        damaged_values(tables).map(lambda values: tomli_w.dumps(values).encode()),
        damaged_bytes(PROTOCOL.encode()),
        deep(PROTOCOL, "1").map(str.encode),
    )

    @bad(0.2)
    @given(contents, st.sampled_from(["ewc", "naive+ewc", "dgr"]))
    def each(content, strategy):
        path.write_bytes(content)
        refused_by_command("run", f"{path}/class", strategy, "--dry-run", "--out", str(out))
        assert on_disk(tmp_path) == {str(path): content}

    path.write_text(PROTOCOL)
    assert command("run", f"{path}/class", "ewc", "--dry-run", "--out", str(out))[0] == 0
    each()


def test_a_record(tmp_path):
    """With a checksum that fits, too, as a program that is wrong would write it: it must not be what is believed."""
    good = record(
        **WHOLE | {"accuracy_at_initialisation": [0.1] * 5, "metrics": metrics(WHOLE["matrix"], [0.1] * 5)},
        generated={"class_shares": [[0.5, 0.5]], "classifier_accuracy": 0.9},
        revisions={"naive": 2},
        hyperparameters={"strategy": {"a": [1]}, "stream": {"kind": "split", "experiences": 5}},
    )
    path = written(tmp_path / "runs", good)
    beside = written(tmp_path / "runs", record(seed=1, **WHOLE))
    text, whole = path.read_text(), beside.read_bytes()

    def sealed(content: dict) -> bytes:
        return json.dumps(content | {"checksum": store.checksum(content)}).encode()

    contents = st.one_of(
        damaged_values(json.loads(text)).map(sealed),
        damaged_bytes(text.encode()),
        deep(text, "0.9").map(str.encode),
    )

    runs = str(tmp_path / "runs")
    ways = [(name, runs) for name in ("table", "verify", "parity")] * 4  # the others draw, which takes longer
    ways += [("matrix", runs, "--out", str(tmp_path / "made.png")), ("report", runs, "--out", str(tmp_path / "made"))]

    @bad(0.2)
    @given(contents, st.sampled_from(ways))
    def each(content, words):
        path.write_bytes(content)
        status, shown, said = command(*words)
        line = refused(store.read, path)  # one that is believed was shown without a fault
        assert status == 1, said
        assert shown.strip(), "the other record is shown"
        assert f"left out: {line}" in said.splitlines(), "one line names the one that is left out"
        assert on_disk(tmp_path / "runs") == {str(path): content, str(beside): whole}

    assert store.read(path) == good
    each()


def test_a_checkpoint(tmp_path, capsys):
    """It is set aside with a line, and the run begins again."""
    kept = Checkpoints(tmp_path, "mine")
    kept.share = float("inf")
    kept.offer(lambda: {"model": {"weight": torch.arange(6.0)}, "random": [1, "x", None], "watchers": {}})
    good = kept.path.read_bytes()
    head, _, body = good.partition(b"\n")

    def sealed(body: bytes) -> bytes:
        return FORMAT + sha256(body).hexdigest().encode() + b"\n" + body

    @bad(0.1)
    @given(st.one_of(damaged_bytes(good), damaged_bytes(body).map(sealed)))
    def each(content):
        kept.path.write_bytes(content)
        with no_hang():
            state = Checkpoints(tmp_path, "mine").read()
        said = capsys.readouterr().err
        if state is not None:  # what was hit says nothing: padding, the time of a file in the archive
            reject()
        assert len(said.splitlines()) == 1
        assert "is not used, and kept as" in said
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]
        next(tmp_path.iterdir()).unlink()

    assert Checkpoints(tmp_path, "mine").read() is not None
    assert head.startswith(FORMAT)
    each()


def unlike(folder: Path, file: Path, read, share: float, sizes=()):
    """Reads a folder in which one file is not what it was, over and over."""
    good = file.read_bytes()

    @bad(share)
    @given(damaged_bytes(good))
    def each(content):
        file.write_bytes(content)
        whole = on_disk(folder)
        line = refused(read)
        assert str(folder) in line, "it says which file or folder"
        assert on_disk(folder) == whole

    each()
    file.write_bytes(good)


def test_idx_files(idx_files, fresh_data):
    folder = idx_files()
    fresh_data.setenv("ENGRAMS_DATA", str(folder))

    def read():
        datasets.load.cache_clear()
        datasets.load("mnist")

    read()
    for stem in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        unlike(folder, folder / "MNIST" / "raw" / stem, read, 0.05)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_file(tmp_path, compressed):
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    images = rng.integers(0, 256, (12, 4, 4), dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    path = tmp_path / "mine.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    load_own(f"npz:{path}", from_disk=False)
    unlike(tmp_path, path, lambda: load_own(f"npz:{path}", from_disk=False), 0.05)


def test_arrays_of_any_kind(tmp_path):
    path = tmp_path / "mine.npz"
    labels = np.arange(12) % 3
    good = {"train_images": np.zeros((12, 4, 4)), "train_labels": labels}
    good |= {"test_images": np.zeros((12, 4, 4)), "test_labels": labels}
    kinds = ["b1", "i1", "u8", "i8", "f2", "f4", "f8", "c16", "S3", "U3", "M8[s]", "O", "V4"]

    @bad(0.05)
    @given(
        st.sampled_from([*good, "x_train", "other"]),
        st.sampled_from(kinds),
        st.lists(st.sampled_from([0, 1, 3, 12]), max_size=5),
        st.sampled_from([0, 1, -1, np.nan, np.inf, 1e300, 2**63]),
    )
    def each(name, kind, shape, value):
        with np.errstate(all="ignore"):
            try:
                made = np.full(shape, value).astype(kind)
            except (ValueError, TypeError, OverflowError):
                made = np.zeros(shape, kind)
        np.savez(path, **good | {name: made})
        assert str(path) in refused(lambda: load_own(f"npz:{path}", from_disk=False))

    each()


def test_a_parquet_file(tmp_path):
    picture = io.BytesIO()
    Image.new("L", (4, 4), 9).save(picture, "png")
    labels = [n % 3 for n in range(12)]
    table = pyarrow.table({"image": [picture.getvalue()] * 12, "label": labels})
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")

    def read():
        load_own(f"parquet:{tmp_path}", from_disk=False)

    read()
    unlike(tmp_path, tmp_path / "train.parquet", read, 0.1)


# --- command lines ----------------------------------------------------------------------------------------------------

WORDS = (
    *("naive", "ewc", "ewc+replay", "split-digits/task", "permuted-digits", "digits", "mine.toml", "runs", "wandb:a/b"),
    *(
        "--seeds",
        "--set",
        "--experiences",
        "--workers",
        "--out",
        "--wandb",
        "--tag",
        "--format",
        "--protocol",
        "--wide",
    ),
    *("3", "5-9,12", "7-7", "-1", "0-99999999999", "99999999999999999999", DIGITS, "1e400", "nan", "٣", "²"),
    *(
        "ewc_lambda=1",
        "training.epochs=2",
        "ewc_lambda=",
        "=",
        "training.epochs=x",
        "training=3",
        "stream.kind=permuted",
    ),
    *("ewc_lambda=" + "[" * DEEP, "ewc_lambda=" + DIGITS, "{" * DEEP, '{"a":' * DEEP, "{}", '{"ewc_lambda": NaN}'),
    *('{"training.epochs": 1e999}', "dataset=npz:nowhere.npz", "dataset=a:b", "network.kind=x.py:y", "a.b.c=1", ".=1"),
    *(
        "",
        " ",
        "\0",
        "a\nb",
        "\udcff",
        "é✓",
        "[red]x[/]",
        "../..",
        "/dev/null",
        "/dev/null/x",
        "x" * 5000,
        "md",
        "offline",
    ),
    *("naive+naive", "+", "ewc+", "no.such:thing", "os:path", ":", "mine.toml/task", "/", "--no-such", "-", "--help"),
)
COMMANDS = (
    ("run", "--dry-run", "split-digits/task", "ewc", "--seeds", "2"),
    ("suite", "--dry-run", "digits", "--seeds", "1"),
    ("protocol", "split-digits/task", "--set", "training.epochs=2"),
    ("sweep", "split-digits/task", "ewc"),
    ("table", "runs", "--format", "csv"),
    ("parity", "runs"),
    ("verify", "runs"),
    ("matrix", "runs", "--protocol", "split-digits/task"),
    ("upload", "nowhere"),
    ("dashboards", "--dry-run", "runs"),
    ("study", "no-such-study"),
    ("search", "no-such-protocol", "ewc"),
    ("list",),
    ("data", "--wide"),
)
"""The first two words stay: none of them is to begin anything that takes time."""


@st.composite
def command_lines(draw) -> list[str]:
    first, *rest = draw(st.sampled_from(COMMANDS))
    kept = [first, *rest[:1]]
    words = rest[1:]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(words)))
        kind = draw(st.sampled_from(["insert", "exchange", "exchange", "remove", "double"]))
        word = draw(st.one_of(st.sampled_from(WORDS), st.text(string.printable, max_size=8)))
        if kind == "insert" or not words:
            words.insert(place, word)
        else:
            place = min(place, len(words) - 1)
            if kind == "exchange":
                words[place] = word
            elif kind == "remove":
                del words[place]
            else:
                words.insert(place, words[place])
    return kept + words


def test_a_command_line(tmp_path, alone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs", record(**WHOLE))
    (tmp_path / "mine.toml").write_text(PROTOCOL)

    @bad(0.2)
    @given(command_lines())
    def each(words):
        whole = on_disk(tmp_path)
        refused_by_command(*words)
        assert on_disk(tmp_path) == whole

    each()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seeds", "0-99999999999"), "that is more than 10000"),
        (("--seeds", DIGITS), "give how many"),
        (("--seeds", "9999999999-9999999999"), "a seed is a whole number from 0 to 4294967295"),
        (("--set", f"ewc_lambda={DIGITS}"), "its value cannot be read"),
        (("--set", "ewc_lambda=" + "[" * DEEP), "its value cannot be read"),
        (("--set", '{"a":' * DEEP), "no dictionary in JSON"),
        (("--set", "a\nb=1"), r"no strategy here has 'a\nb' to set"),
        (("--out", "x" * 5000), "File name too long"),
        (("x" * 5000 + ".py:name",), "File name too long"),
    ],
)
def test_what_was_once_a_traceback_or_a_hang(tmp_path, words, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused_by_command("run", "--dry-run", "split-digits/task", "ewc", *words)
    assert not on_disk(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"x = {DIGITS}", "cannot be read"),
        ("x = " + "[" * DEEP, "cannot be read"),
        ("x = " + "{a=" * DEEP, "cannot be read"),
        ('[strategies.ewc]\n"a\\nb\\u001b[2J" = 1', r"strategies.ewc.a\nb\x1b[2J"),
    ],
)
def test_protocol_files_that_were_once_a_traceback_or_several_lines(tmp_path, line, said):
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "x"\nextends = "split-digits"\n{line}\n')
    assert said in refused_by_command("run", "--dry-run", f"{path}/class", "ewc")


def test_a_record_with_a_time_that_cannot_be(tmp_path):
    path = written(tmp_path, record(**WHOLE))
    content = json.loads(path.read_text())
    for seconds in (float("inf"), float("nan"), -1.0):
        content["seconds"] = seconds
        path.write_text(json.dumps(content | {"checksum": store.checksum(content)}))
        with pytest.raises(store.RecordError, match="seconds"):
            store.read(path)
