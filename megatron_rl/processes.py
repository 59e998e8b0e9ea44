"""The actor of a run and its weight sync: in this process, or in processes of their own under Ray."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from megatron_rl.actor import groups, weights
from megatron_rl.actor.architecture import describe
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.actor_rank import ActorOrder
from megatron_rl.cluster.launcher import start_ranks
from megatron_rl.cluster.machines import Machines, open_machines
from megatron_rl.cluster.placement import Demand, Node, Placement, place
from megatron_rl.cluster.porter import Away
from megatron_rl.cluster.rank import Address
from megatron_rl.cluster.remote_sync import RemoteSync
from megatron_rl.cluster.route import Route
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.ports import Actor, Critic, WeightSync
from megatron_rl.reshard.delivery import Cut, Source
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import LayoutError, ModelShape
from megatron_rl.reshard.placement import together
from megatron_rl.reshard.plan import plan
from megatron_rl.reshard.ring import memory_folder
from megatron_rl.reshard.sync import DeliverySync, InProcessSync
from megatron_rl.reshard.transport import Exchange, SyncReport
from megatron_rl.rollout.embedded import EmbeddedEngine
from megatron_rl.rollout.vllm_engine import VllmEngine
from megatron_rl.rollout.vllm_host import Here, Seat
from megatron_rl.spec.schema import SpecError

Engine = EmbeddedEngine | VllmEngine


class Closeable(Protocol):
    """A machine of a run."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The actor, how its weights reach the engine, and what else must be closed after it, by name."""

    actor: Actor
    weights: WeightSync
    critic: Critic | None = None
    others: Mapping[str, Closeable] = field(default_factory=dict)


def in_this_process(settings: ActorSettings, origin: Origin, seed: int, engine: Engine) -> Cast:
    """An actor of one rank beside the engine."""
    if isinstance(engine, VllmEngine):
        if engine.fleet.terms.wire == "network":
            raise SpecError(
                "rollout.vllm.wire is 'network', but the actor is one rank in the driver; set it to 'auto'."
            )
        engine.start()
    groups.join_alone()
    groups.cut(settings, seed)
    actor = MegatronActor(settings, origin)
    return Cast(actor=actor, weights=in_process_sync(actor, engine), critic=actor.critic)


def in_process_sync(actor: MegatronActor, engine: Engine) -> WeightSync:
    """The actor's parameters into the engine's, by the plan between their layouts."""
    if isinstance(engine, VllmEngine):
        sync = DeliverySync(engine=engine, parameters={0: weights.published(actor.model)})
        engine.expect(source_of(actor.model.architecture.shape, actor.settings), sync.send)
        return sync
    source = weights.layout(actor.model)
    target = huggingface_layout(actor.model.architecture.shape)
    exchange = Exchange(
        plan=plan(source, target, together(source, target)),
        sources={0: weights.published(actor.model)},
        targets={0: engine.parameters()},
        dtype=engine.decoder.dtype,
    )
    return InProcessSync(exchange=exchange, serve=engine.serve, withhold=engine.withhold)


def source_of(shape: ModelShape, settings: ActorSettings) -> Source:
    """What an actor of this model sends, told without a model."""
    return Source(
        shape=shape,
        cut=Cut.of(settings, shape.layers),
        modules="transformer_engine" if has_transformer_engine() else "local",
    )


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What it takes to start an actor whose ranks are processes of their own; `start` does it."""

    settings: ActorSettings
    origin: Origin
    seed: int
    cluster: ClusterSettings
    logs: Path

    def start(self, engine: Engine) -> Cast:
        """The ranks under Ray, sending to the engine in this process, or to its groups where the placement says."""
        try:
            machines = open_machines(self.cluster.address, self.cluster.machines, self.cluster.start_s)
        except LayoutError as error:
            raise SpecError(str(error)) from None
        try:
            placement = self.place(machines.nodes, engine)
            if not placement.is_one_machine:
                print("\n".join(placement.lines()), file=sys.stderr)
            if isinstance(engine, VllmEngine):
                engine.start(seats_of(placement, machines))
            order = ActorOrder(
                settings=_from_anywhere(self.settings),
                origin=_absolute(self.origin),
                seed=self.seed,
                timeout_s=2 * max(self.cluster.start_s, self.cluster.step_s),
            )
            group = start_ranks(machines, placement, order.build, self.cluster, self.logs)
        except BaseException:
            if isinstance(engine, VllmEngine):
                engine.close()
            machines.close()
            raise
        meeting = None if placement.is_one_machine else group.address
        if isinstance(engine, VllmEngine):
            sync = RemoteSync(group=group, inlet=engine)
            is_network = engine.fleet.terms.wire == "network"
            engine.expect(source_of(self._shape, self.settings), sync.send, group.address if is_network else meeting)
            inlet: Closeable = engine
        else:
            route = self._route(engine, meeting)
            machines.remove_also(memory_folder() / route.key)
            inlet = EmbeddedInlet.of(engine, route)
            sync = RemoteSync(group=group, inlet=inlet)
        critic = group.critic if self.origin.critic else None
        return Cast(actor=group, weights=sync, critic=critic, others={"inlet": inlet, "cluster": machines})

    def place(self, nodes: tuple[Node, ...], engine: Engine | None = None) -> Placement:
        """Where everything stands; SpecError says what is short."""
        on_gpu, groups, workers = any(node.gpus for node in nodes), 1, 1
        if isinstance(engine, VllmEngine):
            groups, workers = engine.groups, engine.workers
        elif on_gpu and self.cluster.placement == "split":
            raise SpecError(
                "cluster.placement is 'split', but the embedded engine lives in the driver on its machine's first GPU; "
                "set it to 'colocated', or choose an engine with processes of its own by rollout=vllm."
            )
        demand = Demand(
            ranks=self.settings.world,
            group=self.settings.tp,
            gpus=int(on_gpu),
            cpus=self.cluster.cpus_per_rank,
            engines=groups,
            engine_gpus=workers * int(on_gpu),
            placement=self.cluster.placement,
            spread=isinstance(engine, VllmEngine),
        )
        try:
            placed = place(demand, nodes)
        except LayoutError as error:
            raise SpecError(str(error)) from None
        if isinstance(engine, VllmEngine):
            _check_reach(engine, placed)
            if on_gpu and engine.fleet.is_seated:
                _check_seats(engine, placed)
        return placed

    @property
    def _shape(self) -> ModelShape:
        return describe(weights.read_config(self.origin.folder)).shape

    def _route(self, engine: EmbeddedEngine, meeting: Address | None) -> Route:
        return Route(
            shape=self._shape,
            parallel=self.settings,
            modules="transformer_engine" if has_transformer_engine() else "local",
            key=f"megatron_rl-{uuid.uuid4().hex}",
            dtype=engine.decoder.dtype,
            meeting=meeting,
            timeout_s=self.cluster.publish_s,
        )


@dataclass(frozen=True, kw_only=True)
class EmbeddedInlet:
    """The `Inlet` of an engine in this process."""

    route: Route
    exchange: Exchange
    engine: EmbeddedEngine

    @classmethod
    def of(cls, engine: EmbeddedEngine, route: Route) -> EmbeddedInlet:
        return cls(route=route, exchange=route.receiving(engine.parameters()), engine=engine)

    def begin(self, version: int) -> Route:
        self.engine.withhold()
        return self.route

    def finish(self, version: int) -> SyncReport:
        return self.exchange.run(version)

    def serve(self, version: int) -> None:
        self.engine.serve(version)

    def close(self) -> None:
        """Closes the wire."""
        if self.exchange.wire is not None:
            self.exchange.wire.close()


def seats_of(placed: Placement, machines: Machines) -> list[Seat]:
    """Where each group of vLLM is started."""
    return [Seat(Away.on(machines, seat.node) if seat.node else Here(), seat.gpus) for seat in placed.engines]


def _check_reach(engine: VllmEngine, placed: Placement) -> None:
    wire = engine.fleet.terms.wire
    if wire in ("memory", "cuda_ipc") and not placed.is_one_machine:
        raise SpecError(
            f"rollout.vllm.wire is '{wire}', which ends at one machine, but this run takes several; set it to 'auto'."
        )


def _check_seats(engine: VllmEngine, placed: Placement) -> None:
    """The GPUs that were asked for are those that the placement gives; SpecError says which those are."""
    given = [gpu for post in engine.fleet.posts for gpu in post.gpus]
    seats = [gpu for seat in placed.engines for gpu in seat.gpus]
    if given != seats:
        raise SpecError(
            f"the ranks leave GPUs {seats} to vLLM, but it was given {given}; set rollout.vllm.gpus={seats}, or leave "
            "it out."
        )


def _from_anywhere(settings: ActorSettings) -> ActorSettings:
    if settings.lora is None or settings.lora.start is None:
        return settings
    return replace(settings, lora=replace(settings.lora, start=settings.lora.start.resolve()))


def _absolute(origin: Origin) -> Origin:
    """Ranks have working folders of their own."""
    reference = origin.reference.resolve() if origin.reference else None
    return replace(origin, folder=origin.folder.resolve(), reference=reference)
