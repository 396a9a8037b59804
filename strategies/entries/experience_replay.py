"""Experience replay from a reservoir."""

from __future__ import annotations

from engrams.strategies.choices import DrawsFrom, JoinedBy
from engrams.strategies.contract import Hyperparameters, Positive, Strategy
from engrams.strategies.entries import Later

experience_replay = Later("engrams.strategies.experience_replay")


class ExperienceReplayHyperparameters(Hyperparameters):
    """What :class:`~engrams.strategies.experience_replay.ExperienceReplayPlugin` takes."""

    mem_size: Positive
    batch_size_mem: Positive | None = None
    draws_from: DrawsFrom = "all"
    joined: JoinedBy = "minibatch"


ENTRIES = {
    "er": Strategy(
        plugin=lambda h: experience_replay.ExperienceReplayPlugin(
            h.mem_size, h.batch_size_mem, draws_from=h.draws_from, joined=h.joined
        ),
        first_of_plugins=True,
        hyperparameters=ExperienceReplayHyperparameters,
    ),
}
