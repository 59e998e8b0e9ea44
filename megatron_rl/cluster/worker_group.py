"""All ranks of an actor, called as one: the `Actor` of a run whose ranks are processes of their own."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.ragged import Ragged
from megatron_rl.beside import beside
from megatron_rl.cluster.member import Member
from megatron_rl.cluster.rank import Address, Scores, WeightRoute
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.cluster.watch import RankFailure, Watch, await_written
from megatron_rl.ports import Objective, Policy, Update
from megatron_rl.reshard.transport import SyncReport

CLOSE_S = 10.0
"""How long ranks may take to part in order before they are ended."""


@dataclass(frozen=True, eq=False)
class Sending:
    """Ranks that are sending their weights: `finish` waits for them."""

    group: "WorkerGroup"
    refs: Sequence[ray.ObjectRef]

    def finish(self, received: Future[SyncReport]) -> list[SyncReport]:
        """Every rank's report; what is received beside ends the wait where it fails."""
        group = self.group
        reports: list[SyncReport] = group.watch.gather("publish", self.refs, group.settings.publish_s, received)
        return reports


@dataclass(frozen=True, eq=False)
class GroupCritic:
    """The `Critic` whose ranks are those of the actor."""

    group: "WorkerGroup"

    def value(self, batch: Batch) -> Ragged:
        """The value before each response token."""
        put = ray.put(batch)
        return self.group.scores("value", [member.actor.value.remote(put) for member in self.group.members])

    def update(self, batch: Batch) -> Update:
        """Learns the returns."""
        put, group = ray.put(batch), self.group
        refs = [member.actor.update_critic.remote(put) for member in group.members]
        update: Update = group.watch.gather("update of the critic", refs, group.settings.step_s)[0]
        return update


class WorkerGroup:
    """Each method calls every rank with the same arguments; a batch is put once and read in place by all of them."""

    def __init__(self, members: Sequence[Member], settings: ClusterSettings, address: Address) -> None:
        self.members, self.settings, self.address = tuple(members), settings, address
        self.watch = Watch(members, settings.heartbeat_s)

    def update(self, batch: Batch, objective: Objective) -> Update:
        """Learns from the batch."""
        put = ray.put(batch)
        refs = [member.actor.update.remote(put, objective) for member in self.members]
        update: Update = self.watch.gather("update", refs, self.settings.step_s)[0]
        return update

    def score(self, batch: Batch, policy: Policy = "current") -> Ragged:
        """Log-probability of each response token."""
        put = ray.put(batch)
        refs = [member.actor.score.remote(put, policy) for member in self.members]
        return self.scores("score", refs)

    @property
    def critic(self) -> GroupCritic:
        return GroupCritic(self)

    def scores(self, what: str, refs: Sequence[ray.ObjectRef]) -> Ragged:
        """The first rank's numbers, one for each response token."""
        scores: Scores = self.watch.gather(what, refs, self.settings.step_s)[0]
        # What lies in the object store may not be written to, which tensors cannot express.
        return Ragged(torch.from_numpy(scores.values.copy()), torch.from_numpy(scores.offsets.copy()))

    def save(self, folder: Path) -> Future[None]:
        """Every rank takes its part of a checkpoint aside, and writes it beside what comes next."""
        refs = [member.actor.save.remote(folder.resolve()) for member in self.members]
        self.watch.gather("save", refs, self.settings.step_s)
        written = [member.actor.saved.remote() for member in self.members]
        return beside(partial(await_written, self.members, written, self.settings.step_s), "save")

    def load(self, folder: Path) -> None:
        """Continues from a saved state."""
        refs = [member.actor.load.remote(folder.resolve()) for member in self.members]
        self.watch.gather("load", refs, self.settings.step_s)

    def publish(self, version: int, route: WeightRoute) -> Sending:
        """Every rank begins to send its weights."""
        return Sending(self, [member.actor.publish.remote(version, route) for member in self.members])

    def close(self) -> None:
        """The ranks part, and their processes end."""
        if self.watch.is_over:
            return
        try:
            self.watch.gather("close", [member.actor.close.remote() for member in self.members], CLOSE_S)
        except RankFailure:
            return  # it has ended them; nothing is left of the run that this could harm
        finally:
            self.watch.close()
