"""A strategy of one's own: sentences and masks in a dict, a recurrent network that also returns its features."""

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import Dataset

from engrams.strategies import EWCPlugin, MASPlugin


class Sentences(Dataset):
    def __init__(self, seed):
        random = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, 30, (40, 7), generator=random)

    def __len__(self):
        return len(self.words)

    def __getitem__(self, i):
        return {"words": self.words[i], "mask": torch.arange(7) < 3 + i % 4}, i % 3, 0


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(30, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, words, mask):
        states, _ = self.body(self.words(words))
        features = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(features), features


class Reading(SupervisedTemplate):
    def forward(self):
        outputs, self.features = self.model(**self.mb_x)
        return outputs

    def _unpack_minibatch(self):
        self.mbatch = [
            {name: part.to(self.device) for name, part in self.mbatch[0].items()},
            *(column.to(self.device) for column in self.mbatch[1:]),
        ]


torch.manual_seed(0)
benchmark = benchmark_from_datasets(train=[AvalancheDataset(Sentences(seed)) for seed in range(2)])
model, plugins = Reader(), [EWCPlugin(1.0, fisher="sampled"), MASPlugin(0.1)]
strategy = Reading(
    model=model, optimizer=torch.optim.Adam(model.parameters()), criterion=nn.CrossEntropyLoss(), train_mb_size=8,
    plugins=plugins, evaluator=EvaluationPlugin(loss_metrics(epoch=True), loggers=[InteractiveLogger()]),
)  # fmt: skip
for experience in benchmark.train_stream:
    strategy.train(experience)
for plugin in plugins:
    assert all(f.any() for f in plugin.importances.values()), "every parameter has a say"
print("consolidated", plugins[0].consolidated)
