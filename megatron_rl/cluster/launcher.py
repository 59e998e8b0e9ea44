"""Starts the ranks of an actor where a placement says, and ends them with everything they started."""

from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megatron_rl.cluster.machines import Machines
from megatron_rl.cluster.member import Member
from megatron_rl.cluster.placement import Placement
from megatron_rl.cluster.rank import Address, Beat, Build, Post, RankHost
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.cluster.watch import RankFailure
from megatron_rl.cluster.worker_group import WorkerGroup


def start_ranks(
    machines: Machines, placement: Placement, build: Build, settings: ClusterSettings, logs: Path
) -> WorkerGroup:
    """The ranks, each built by `build` in a process of its own; all of them have joined."""
    posts = [
        Post(rank=rank, world=len(placement.ranks), gpus=seat.gpus, log=logs.resolve() / f"rank_{rank:04d}.log")
        for rank, seat in enumerate(placement.ranks)
    ]
    actors = [_host(post, machines.ids[seat.node]) for post, seat in zip(posts, placement.ranks, strict=True)]
    beats = _first_beats(machines, actors, settings.start_s)
    members = [
        Member(
            rank=post.rank,
            actor=actor,
            pid=beat.pid,
            machine=placement.nodes[seat.node].name,
            node_id=machines.ids[seat.node],
            door=machines.doors[seat.node],
            log=post.log,
        )
        for post, actor, beat, seat in zip(posts, actors, beats, placement.ranks, strict=True)
    ]
    address: Address = ray.get(actors[0].open_store.remote())
    group = WorkerGroup(members, settings, address)
    group.watch.look_also(machines.loss)
    try:
        group.watch.gather("join", [actor.join.remote(build, address) for actor in actors], settings.start_s)
    except BaseException:
        group.watch.close()
        raise
    group.watch.expect_answers()
    return group


def _host(post: Post, node_id: str) -> ActorHandle:
    """Placed by the placement alone: Ray counts nothing for it, since the run has its machines for itself."""
    kind = ray.remote(concurrency_groups={"watch": 1, "disk": 1})(RankHost)
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return kind.options(num_cpus=0, num_gpus=0, max_restarts=0, scheduling_strategy=there).remote(post)


def _first_beats(machines: Machines, actors: list[ActorHandle], timeout_s: float) -> list[Beat]:
    refs = [actor.beat.remote() for actor in actors]
    ready, late = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    if late:
        ranks = [refs.index(ref) for ref in late]
        logs = machines.keep_logs()
        raise RankFailure(f"the processes of ranks {ranks} did not start in {timeout_s:g} s; Ray's logs are in {logs}.")
    try:
        beats: list[Beat] = ray.get(ready)
    except RayActorError as error:
        logs = machines.keep_logs()
        raise RankFailure(f"the process of a rank could not start: {error}; Ray's logs are in {logs}.") from None
    return beats
