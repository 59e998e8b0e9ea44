"""The groups of an engine: started, replaced when they are lost, and brought the weights of each version."""

from __future__ import annotations

import select
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from megatron_rl.reshard.delivery import Delivery, Source
from megatron_rl.reshard.digest import ReceiverLost, TransferError, Verify
from megatron_rl.reshard.sync import sent_and_received
from megatron_rl.reshard.transport import SyncReport
from megatron_rl.rollout.vllm_floor import Floor
from megatron_rl.rollout.vllm_group import LISTEN_S, CoreOrder, Group, GroupLost
from megatron_rl.rollout.vllm_host import Post, Seat

PARTS: Final = ("weights", "kv_cache")
"""Memory that a group gives back asleep, in the order in which it takes it again."""
OWN_S = 10.0
"""How long groups may take to say what became of them, beyond what they wait for."""
Send = Callable[[Delivery, int], None]
"""Sends the actor's weights, as they are now, under this version."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How weights come to the groups, and how long anything may take."""

    tp: int
    dtype: Literal["float32", "bfloat16", "float16"]
    verify: Verify
    wire: Literal["auto", "memory", "cuda_ipc", "network"]
    """Auto takes the network where whoever sends says where to meet, else memory."""
    start_s: float
    sync_s: float


@dataclass(kw_only=True, eq=False)
class Berth:
    """The place of a group, whichever process fills it."""

    post: Post
    group: Group
    version: int = -1
    """The version it holds whole; -1 none."""
    is_lost: bool = False
    """Whether its process could not even start."""
    asleep: set[str] = field(default_factory=set)
    """The memory that it has given back."""


@dataclass(kw_only=True, eq=False)
class Fleet:
    """All groups of one engine. What a group is started with never changes; what it holds does."""

    terms: Terms
    posts: Sequence[Post]
    order: CoreOrder
    """What every group is started as."""
    is_seated: bool = False
    """Whether the posts' GPUs were asked for; they are otherwise the first ones, until a seat says which."""
    source: Source | None = None
    """What sends to it."""
    send: Send | None = None
    """Sends once more to a group that was replaced; without it such a group waits for the next version."""
    is_left_behind: bool = False
    """Whether the actor learns meanwhile: what it could send is another version than the one that is served."""
    meeting: tuple[str, int] | None = None
    """Host and port of a store, for weights that go over the network."""
    delivery: Delivery | None = None
    berths: list[Berth] = field(default_factory=list)
    version: int = -1
    """What rollouts are written with; -1 nothing."""
    floor: Floor = field(default_factory=Floor)
    restarts: int = 0
    _given_up: Delivery | None = None

    def start(self, seats: Sequence[Seat] = ()) -> None:
        """Starts every group at its seat, or where its post says on this machine, and waits for none."""
        seats = seats or [Seat(gpus=post.gpus) for post in self.posts]
        for post, seat in zip(self.posts, seats, strict=True):
            name = f"{post.name} on {seat.host.machine}" if seat.host.machine else post.name
            there = replace(post, name=name, gpus=seat.gpus)
            self.berths.append(Berth(post=there, group=Group.start(there, self.order, seat.host)))

    def expect(self, source: Source, send: Send | None, meeting: tuple[str, int] | None = None) -> None:
        """From here on this sends; another source than before comes over another delivery."""
        if (source, meeting) != (self.source, self.meeting):
            self._forget_delivery()
        self.source, self.send, self.meeting = source, send, meeting

    def begin(self, version: int) -> Delivery:
        """Every group now waits for this version, over the delivery that comes back."""
        if not self.berths:
            self.start()
        self._sweep()
        self._replace_lost()
        for berth in self.berths:
            self._await_start(berth)
            berth.version = -1
        self._wake("weights", version)
        if self.delivery is None:
            self.delivery = self._opened(version)
        for berth in self.berths:
            berth.group.say({"do": "receive", "version": version})
        return self.delivery

    def finish(self, version: int) -> SyncReport:
        """Returns when every group has the version, and is awake; TransferError, after which none serves, otherwise.

        Where one is lost the others and whoever sends stop waiting, and another is started in its place.
        """
        assert self.delivery is not None, "a version is awaited before its sync has begun"
        try:
            report = self._receive(self.berths, self.delivery, version)
            self._wake("kv_cache", version)
            return report
        except TransferError:
            self._given_up, self.delivery = self.delivery, None
            self._replace_lost()
            raise

    def replace(self, place: int) -> None:
        """Ends the group in this place and starts another, which is not waited for."""
        berth = self.berths[place]
        berth.group.kill()
        self._forget_delivery()
        self.restarts += 1
        berth.group, berth.version, berth.is_lost = Group.start(berth.post, self.order, berth.group.host), -1, False
        berth.asleep = set()

    def rejoin(self, place: int, version: int) -> bool:
        """Brings a replaced group, ready by now, the version that the others serve; False where nobody can."""
        if self.send is None or self.is_left_behind:
            return False
        berth = self.berths[place]
        delivery, send = self._deliver_to([berth]), self.send
        berth.group.say({"do": "receive", "version": version})
        try:
            sent_and_received(lambda: send(delivery, version), lambda: self._receive([berth], delivery, version))
        finally:
            delivery.sweep()
        return True

    def sleep(self) -> None:
        """Every group gives its memory back until the next version, which brings all weights anew; none serves.

        One that is still starting would take memory later, so it is waited for; `begin` replaces those that are lost.
        """
        for berth in self.berths:
            berth.version = -1
        awake = [berth for berth in self.berths if not (berth.is_lost or berth.group.is_gone or berth.asleep)]
        for berth in awake:
            with suppress(GroupLost):
                self._await_start(berth)
        for berth in self._obeying([berth for berth in awake if berth.group.is_ready], {"do": "sleep"}):
            berth.asleep = {*PARTS}

    def close(self) -> None:
        """Ends every group; one that still waits for weights stops waiting."""
        if self.delivery is not None:
            self.delivery.give_up()
        for berth in self.berths:
            berth.group.part()
        # Side by side, since each on a machine that is lost takes a while to be given up.
        with ThreadPoolExecutor(max(1, len(self.berths))) as beside:
            for ended in [beside.submit(_end, berth.group) for berth in self.berths]:
                ended.result()
        self._forget_delivery()
        self._sweep()
        self.berths.clear()

    def _replace_lost(self) -> None:
        for place, berth in enumerate(self.berths):
            if berth.is_lost or berth.group.is_gone or berth.group.process.poll() is not None:
                self.replace(place)

    def _wake(self, part: str, version: int) -> None:
        """Groups that sleep take this part of their memory again; ReceiverLost where one is lost over it."""
        asleep = [berth for berth in self.berths if part in berth.asleep]
        awake = self._obeying(asleep, {"do": "wake", "part": part})
        for berth in awake:
            berth.asleep.discard(part)
        if lost := [berth.post.name for berth in asleep if berth not in awake]:
            raise ReceiverLost(f"version {version} did not reach every group: {', '.join(lost)} did not wake up")

    def _obeying(self, berths: Sequence[Berth], command: dict[str, Any]) -> list[Berth]:
        """Those that did as they were told; the others are gone."""
        for berth in berths:
            berth.group.say(command)
        obeying = []
        for berth in berths:
            try:
                berth.group.wait("obeyed", self.terms.sync_s)
            except GroupLost:
                if not berth.group.is_gone:
                    raise
            else:
                obeying.append(berth)
        return obeying

    def _await_start(self, berth: Berth) -> None:
        if not berth.group.is_ready:
            berth.group.wait("ready", self.terms.start_s)
            berth.group.is_ready = True

    def _deliver_to(self, berths: Sequence[Berth]) -> Delivery:
        """Opens a new delivery to these groups."""
        if self.source is None:
            raise RuntimeError("the engine was not told what sends its weights; set `source` before publishing.")
        terms = self.terms
        wire = ("network" if self.meeting else "memory") if terms.wire == "auto" else terms.wire
        delivery = Delivery(
            source=self.source,
            tp=terms.tp,
            replicas=len(berths),
            key=f"megatron_rl-{uuid.uuid4().hex}",
            dtype=terms.dtype,
            verify=terms.verify,
            wire=wire,
            meeting=self.meeting,
            timeout_s=terms.sync_s,
        )
        for number, berth in enumerate(berths):
            berth.group.say({"do": "open", "delivery": delivery.to_plain(), "first": number * terms.tp})
        for berth in berths:
            berth.group.wait("opened", terms.sync_s)
        return delivery

    def _opened(self, version: int) -> Delivery:
        try:
            return self._deliver_to(self.berths)
        except GroupLost as error:
            if not any(berth.group.is_gone for berth in self.berths):
                raise
            raise ReceiverLost(f"version {version} could not be announced: {error}") from None

    def _receive(self, berths: Sequence[Berth], delivery: Delivery, version: int) -> SyncReport:
        reports, problems, waiting = list[SyncReport](), list[str](), list(berths)
        # Longer than either end of the wire waits for the other, so that their own sentence comes first.
        ends = time.monotonic() + self.terms.sync_s + OWN_S
        while waiting and time.monotonic() < ends:
            select.select([berth.group.wire for berth in waiting], [], [], LISTEN_S)
            for berth in list(waiting):
                try:
                    told = _received(berth, version)
                except GroupLost as error:
                    # The first is the cause, and may have lost a worker; others fail because it is given up.
                    berth.group.is_gone = berth.group.is_gone or not problems
                    problems.append(str(error))
                    delivery.give_up()
                    ends, told = min(ends, time.monotonic() + OWN_S), []
                if told is not None:
                    reports += told
                    waiting.remove(berth)
        for berth in waiting:
            berth.group.is_gone = True
            problems.append(f"{berth.post.name} did not say in time that it has it")
            delivery.give_up()
        if not problems:
            return SyncReport.combined(reports)
        raise ReceiverLost(f"version {version} did not reach every group: {'; '.join(problems)}")

    def _forget_delivery(self) -> None:
        if self.delivery is not None:
            self.delivery.sweep()
        self.delivery = None

    def _sweep(self) -> None:
        """What was given up stays so until nobody can be waiting for it."""
        if self._given_up is not None:
            self._given_up.sweep()
        self._given_up = None


def _end(group: Group) -> None:
    if group.is_ready:
        group.close(OWN_S)
    else:
        group.kill()


def _received(berth: Berth, version: int) -> list[SyncReport] | None:
    """What its workers say of this version, None where they say nothing yet."""
    if (line := berth.group.answer("received", 0.0)) is None:
        return None
    berth.version = version
    plain: list[dict[str, Any]] = line["reports"]
    return [SyncReport(**report) for report in plain]
