"""Networks as people train them, each small: what the penalties have to measure rightly."""

import torch
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiTaskModule, SimpleMLP, as_multitask
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CLASSES = 3
ROWS, IMAGES, SEQUENCES, TOKENS = "rows", "images", "sequences", "tokens"


def inputs(kind, count):
    if kind == TOKENS:
        return torch.randint(7, (count, 5))
    return torch.randn(count, *{ROWS: (6,), IMAGES: (2, 6, 6), SEQUENCES: (5, 4)}[kind])


class Of(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, compute, **modules):
        super().__init__()
        self.compute = compute
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.compute(self, x)


def mlp():
    return SimpleMLP(num_classes=CLASSES, input_size=6, hidden_size=5, hidden_layers=2, drop_rate=0.5)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, CLASSES)
    )


def grouped_and_dilated():
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), groups=2, dilation=(1, 2), padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, padding="same", padding_mode="circular", bias=False),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def convolution_1d():
    body = nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2)
    return Of(lambda m, x: m.head(m.body(x.transpose(1, 2)).relu().mean(2)), body=body, head=nn.Linear(6, CLASSES))


def convolution_3d():
    body = nn.Conv3d(1, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1), dilation=(1, 1, 2))
    return Of(lambda m, x: m.head(m.body(x[:, None]).relu().mean((2, 3, 4))), body=body, head=nn.Linear(4, CLASSES))


def transposed_convolution():
    return nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(507, CLASSES))


def batch_norm():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))


def residual():
    return Of(
        lambda m, x: m.head((m.norm2(m.conv2(m.norm1(m.conv1(x)).relu())) + m.short(x)).relu().mean((2, 3))),
        conv1=nn.Conv2d(2, 4, 3, padding=1, bias=False),
        norm1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        norm2=nn.BatchNorm2d(4),
        short=nn.Conv2d(2, 4, 1),
        head=nn.Linear(4, CLASSES),
    )


def group_and_instance_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(4), nn.InstanceNorm2d(4, affine=True), nn.PReLU(),
        nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def layer_norm_on_rows_of_a_sequence():
    return Of(
        lambda m, x: m.head(m.norm(m.body(x)).relu().mean(1)),
        body=nn.Linear(4, 6),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, CLASSES),
    )


def embedding():
    return Of(
        lambda m, x: m.head(m.table(x).mean(1)),
        table=nn.Embedding(7, 4, padding_idx=0, sparse=True),
        head=nn.Linear(4, CLASSES),
    )


def embedding_bag():
    return Of(lambda m, x: m.head(m.table(x)), table=nn.EmbeddingBag(7, 4), head=nn.Linear(4, CLASSES))


def recurrent(kind):
    body = getattr(nn, kind)(4, 5, batch_first=True)
    return Of(lambda m, x: m.head(m.body(x)[0][:, -1]), body=body, head=nn.Linear(5, CLASSES))


def gru():
    return recurrent("GRU")


def rnn():
    return recurrent("RNN")


def lstm():
    return recurrent("LSTM")


def bidirectional_lstm():
    body = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dropout=0.5)
    return Of(lambda m, x: m.head(m.body(x)[0].mean(1)), body=body, head=nn.Linear(10, CLASSES))


def lstm_cell():
    def compute(m, x):
        state = None
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.head(state[0])

    return Of(compute, cell=nn.LSTMCell(4, 5), head=nn.Linear(5, CLASSES))


def time_first():
    """A sequence's length comes first inside, where a batch's does elsewhere."""
    return Of(
        lambda m, x: m.head(m.body(x.transpose(0, 1)).relu().sum(0)), body=nn.Linear(4, 5), head=nn.Linear(5, CLASSES)
    )


def attention():
    return Of(
        lambda m, x: m.head(m.body(x, x, x, need_weights=False)[0].mean(1)),
        body=nn.MultiheadAttention(4, 2, batch_first=True),
        head=nn.Linear(4, CLASSES),
    )


def transformer():
    body = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return Of(lambda m, x: m.head(m.body(x)[:, 0]), body=body, head=nn.Linear(4, CLASSES))


def tied_embedding():
    table, head = nn.Embedding(CLASSES, 4), nn.Linear(4, CLASSES, bias=False)
    head.weight = table.weight
    return Of(lambda m, x: m.head(m.table(x % CLASSES).mean(1)), table=table, head=head)


def embedding_of_bounded_norm():
    return Of(
        lambda m, x: m.head(m.table(x).mean(1)), table=nn.Embedding(7, 4, max_norm=1.0), head=nn.Linear(4, CLASSES)
    )


def tied():
    twin, layer = nn.Linear(6, 6), nn.Linear(6, 6)
    twin.weight = layer.weight
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), twin, nn.ReLU(), nn.Linear(6, CLASSES))


def weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, CLASSES))


def spectral_norm():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, CLASSES))


class LowRank(nn.Module):
    """A change of low rank to a weight that is frozen (LoRA)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


def low_rank():
    body = nn.Linear(6, 5).requires_grad_(False)
    nn.utils.parametrize.register_parametrization(body, "weight", LowRank())
    return nn.Sequential(body, nn.ReLU(), nn.Linear(5, CLASSES))


class Experts(nn.Module):
    """Each sample is of one of two experts, which see no other."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, CLASSES) for _ in range(2))

    def forward(self, x):
        shares = self.gate(x).softmax(1)
        outputs = x.new_zeros(len(x), CLASSES)
        for expert, layer in enumerate(self.experts):
            chosen = (shares.argmax(1) == expert).nonzero().flatten()
            outputs = outputs.index_add(0, chosen, layer(x[chosen]) * shares[chosen, expert : expert + 1])
        return outputs


def partly_frozen():
    model = mlp()
    model.features.requires_grad_(False)
    return model


def head_only_of_layers_called_as_functions():
    model = Of(
        lambda m, x: functional.linear(m.body.forward(x).relu(), m.head.weight, m.head.bias),
        body=nn.Linear(6, 5),
        head=nn.Linear(5, CLASSES),
    )
    model.body.requires_grad_(False)
    return model


def multi_head():
    return as_multitask(mlp(), "classifier")


def multi_head_with_its_own_forward():
    return MTSimpleMLP(input_size=6, hidden_size=5)


class ByTensor(MultiTaskModule):
    """Looks its task up by a tensor of labels, one a sample."""

    def __init__(self):
        super().__init__()
        self.task, self.body, self.head = nn.Embedding(4, 5), nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x, task_labels):
        return self.head((self.body(x) * self.task(task_labels)).tanh())


def incremental():
    model = mlp()
    model.classifier = IncrementalClassifier(5, initial_out_features=2)
    return model


def incremental_without_masks():
    model = mlp()
    model.classifier = IncrementalClassifier(5, initial_out_features=2, masking=False)
    return model


def called_by_keyword():
    return Of(lambda m, x: m.head(input=m.body(input=x).relu()), body=nn.Linear(6, 5), head=nn.Linear(5, CLASSES))


class Asks(nn.Module):
    """A scale of its own, which is used outside of any layer, and an ``.item()`` on the way."""

    def __init__(self):
        super().__init__()
        self.scale, self.body, self.head = nn.Parameter(torch.ones(5)), nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        h = self.body(x)
        return self.head(h * self.scale if h.sum().item() > -1e9 else h)


class Counts(nn.Module):
    """A buffer that every forward pass changes, in place."""

    def __init__(self):
        super().__init__()
        self.body, self.shift = nn.Linear(6, CLASSES), nn.Parameter(torch.zeros(CLASSES))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.body(x) + self.shift


def checkpointed():
    body = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    return Of(lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False)), body=body, head=nn.Linear(5, CLASSES))


def checkpointed_reentrant():
    first, body = nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    return Of(
        lambda m, x: m.head(checkpoint(m.body, m.first(x), use_reentrant=True)),
        first=first, body=body, head=nn.Linear(5, CLASSES),
    )  # fmt: skip


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)))


def compiled():
    return torch.compile(mlp(), backend="eager")


def partly_compiled():
    body = torch.compile(nn.Linear(6, 5), backend="eager")
    return Of(lambda m, x: m.head(m.body(x).relu()), body=body, head=nn.Linear(5, CLASSES))


def parallel():
    return nn.DataParallel(mlp())


NETWORKS = {
    ROWS: [
        mlp, batch_norm, tied, weight_norm, spectral_norm, low_rank, partly_frozen,
        head_only_of_layers_called_as_functions, multi_head, multi_head_with_its_own_forward, ByTensor, incremental,
        incremental_without_masks, called_by_keyword, Asks, Counts, Experts, checkpointed, checkpointed_reentrant,
        scripted, compiled, partly_compiled, parallel,
    ],
    IMAGES: [
        convolutions, grouped_and_dilated, convolution_3d, transposed_convolution, residual, group_and_instance_norm,
    ],
    SEQUENCES: [
        convolution_1d, layer_norm_on_rows_of_a_sequence, gru, rnn, lstm, bidirectional_lstm, lstm_cell, time_first,
        attention, transformer,
    ],
    TOKENS: [embedding, embedding_bag, tied_embedding, embedding_of_bounded_norm],
}  # fmt: skip
