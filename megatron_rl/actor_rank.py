"""One rank of the actor in a process of its own: what it is ordered to be, and what it does when it is called."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from torch._C._distributed_c10d import Store

from megatron_rl.actor import groups, weights
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.ragged import Ragged
from megatron_rl.cluster.rank import Post, WeightRoute
from megatron_rl.ports import Critic, Objective, Policy, Update
from megatron_rl.reshard.transport import Exchange, SyncReport


@dataclass(frozen=True, kw_only=True)
class ActorOrder:
    """What the ranks of an actor are made of; the same for every rank."""

    settings: ActorSettings
    origin: Origin
    seed: int
    timeout_s: float
    """How long a rank waits for another; longer than the driver waits for both, so that it finds them waiting."""

    def build(self, post: Post, store: Store) -> ActorRank:
        """Joins the other ranks and reads the weights."""
        groups.join(post.rank, post.world, store, self.timeout_s)
        groups.cut(self.settings, self.seed, self.timeout_s)
        return ActorRank(post.rank, MegatronActor(self.settings, self.origin))


class ActorRank:
    """The resident of a rank's process: the actor, and this rank's end of the weight sync."""

    def __init__(self, rank: int, actor: MegatronActor) -> None:
        self.rank, self.actor = rank, actor
        self._sending: tuple[str, Exchange] | None = None

    def update(self, batch: Batch, objective: Objective) -> Update:
        return self.actor.update(batch, objective)

    def score(self, batch: Batch, policy: Policy) -> Ragged:
        return self.actor.score(batch, policy)

    def value(self, batch: Batch) -> Ragged:
        return self._critic.value(batch)

    def update_critic(self, batch: Batch) -> Update:
        return self._critic.update(batch)

    def save(self, folder: Path) -> Future[None]:
        return self.actor.save(folder)

    @property
    def writing(self) -> str:
        return self.actor.writing

    def load(self, folder: Path) -> None:
        self.actor.load(folder)

    def publish(self, version: int, route: WeightRoute) -> SyncReport:
        """Sends this rank's part; another route than last time means that the engine's processes are new ones."""
        if self._sending is None or self._sending[0] != route.key:
            self._part()
            self._sending = route.key, route.sending({self.rank: weights.published(self.actor.model)})
        return self._sending[1].run(version)

    def close(self) -> None:
        self._part()
        self.actor.close()

    @property
    def _critic(self) -> Critic:
        assert self.actor.critic is not None, "only an actor with a critic is asked for values"
        return self.actor.critic

    def _part(self) -> None:
        if self._sending is not None and self._sending[1].wire is not None:
            self._sending[1].wire.close()
        self._sending = None
