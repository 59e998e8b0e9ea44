"""One wave of requests through the groups: handed out, listened for, taken back from groups that are lost.

Weights may come between two of its passes. Groups that were writing go on with them, and say so of what they tell.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_rl.ops.noise import fold
from megatron_rl.reshard.digest import TransferError
from megatron_rl.rollout.vllm_fleet import Berth, Fleet
from megatron_rl.rollout.vllm_group import LISTEN_S, Group, GroupLost
from megatron_rl.rollout.vllm_ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When a wave is given up, and when a group is."""

    deadline_s: float | None
    """The wave is cut short after so long."""
    silence_s: float
    """A group at work that says nothing for so long hangs."""
    start_s: float
    """A group that replaces another may take so long to be ready."""


@dataclass(kw_only=True)
class Wave:
    """`run` ends with every request over."""

    fleet: Fleet
    ledger: Ledger
    patience: Patience
    rows: int
    """Requests that a group holds at once."""
    command: Mapping[str, Any]
    """What every request is written under: the law, and what ends a response."""
    tell: Callable[[Ledger], None]
    ends: float = field(init=False)
    gone: str = ""
    """Why the last group was lost."""
    asked: dict[int, Group] = field(default_factory=dict)
    """The group in each place that has requests of this wave."""

    def __post_init__(self) -> None:
        self.ends = time.monotonic() + (self.patience.deadline_s or float("inf"))

    @property
    def version(self) -> int:
        return self.fleet.version

    def run(self) -> None:
        for berth in self.fleet.berths:
            berth.group.unheeded.clear()
        self.fleet.floor.is_awaited = False
        while self.ledger.is_open:
            if self.fleet.floor.give_way(lambda: self.tell(self.ledger)):
                self._go_on()
            self._hand_out()
            self._listen()
            self._watch()
            self.tell(self.ledger)
            if time.monotonic() > self.ends:
                self._cut_short()
            elif not any(self._has_hope(berth) for berth in self.fleet.berths):
                self._go_without()

    def _go_without(self) -> None:
        """No group has weights: waits for those that whoever learns will publish, and fails where nobody does."""
        if self.fleet.is_left_behind:
            self.fleet.floor.is_awaited = True
        else:
            self.ledger.fail(self.gone or f"no group holds version {self.version}")

    def _hand_out(self) -> None:
        for place, berth in enumerate(self.fleet.berths):
            free = self.rows - len(self.ledger.held(place))
            if berth.version == self.version and self.ledger.waiting and free >= max(1, self.rows // 4):
                taken, self.asked[place] = self.ledger.take(place, free), berth.group
                berth.group.say({"do": "write", **self.command, "requests": [self._asked(id) for id in taken]})

    def _asked(self, id: int) -> dict[str, object]:
        """A request as a group takes it. What it goes on from is not drawn again: each place has noise of its own."""
        request = self.ledger.requests[id]
        seed = int(fold(request.seed, [len(request.tokens)])) & ((1 << 63) - 1)
        return {"id": id, "tokens": request.context, "room": request.budget - len(request.tokens), "seed": seed}

    def _go_on(self) -> None:
        """After weights have come: hears what was said meanwhile, and takes requests back from groups that are gone."""
        self.ledger.versions = range(self.ledger.versions.start, self.version + 1)
        for place, group in self.asked.items():
            berth, why = self.fleet.berths[place], ""
            try:
                while group.unheeded:
                    self._heed(place, group.unheeded.popleft())
            except GroupLost as error:
                why = str(error)
            if berth.group is not group:
                self.ledger.lose(place, why or f"{berth.post.name} was lost while weights came")
            elif why:
                self._lose(place, why)

    def _listen(self) -> None:
        wires = {berth.group.wire: place for place, berth in enumerate(self.fleet.berths) if not berth.is_lost}
        for wire in select.select(list(wires), [], [], LISTEN_S)[0]:
            place = wires[wire]
            try:
                for line in self.fleet.berths[place].group.read():
                    self._heed(place, line)
            except (GroupLost, TransferError) as error:
                self._lose(place, str(error))

    def _heed(self, place: int, line: Mapping[str, Any]) -> None:
        berth = self.fleet.berths[place]
        match line["said"]:
            case "wrote":
                for piece in line["pieces"]:
                    if not self.ledger.note(place, piece):
                        raise GroupLost(f"{berth.post.name} told of request {piece[0]}, which it did not have")
            case "refused":
                for id, why in line["rows"]:
                    self.ledger.refuse(place, id, why)
            case "ready":
                berth.group.is_ready = True
                self.fleet.rejoin(place, self.version)
            case "failed":
                raise GroupLost(f"{berth.post.name} could not {line['what']}: {line['why']}")

    def _watch(self) -> None:
        now = time.monotonic()
        for place, berth in enumerate(self.fleet.berths):
            silence = now - berth.group.last_heard
            if not berth.is_lost and not berth.group.is_ready and silence > self.patience.start_s:
                self._lose(place, f"{berth.post.name} was not ready {silence:.0f} s after it was started")
            elif self.ledger.held(place) and silence > self.patience.silence_s:
                self._lose(place, f"{berth.post.name} said nothing for {silence:.1f} s and was ended")
            elif self.ledger.held(place):
                try:
                    berth.group.check_alive()
                except GroupLost as error:
                    self._lose(place, str(error))

    def _lose(self, place: int, why: str) -> None:
        """Takes the group's requests back and starts another in its place, unless it never got as far as starting."""
        self.gone = why
        self.ledger.lose(place, why)
        berth = self.fleet.berths[place]
        if berth.group.is_ready:
            self.fleet.replace(place)
        else:
            berth.group.kill()
            berth.is_lost = True

    def _has_hope(self, berth: Berth) -> bool:
        """Whether this group writes, or will once it has started and was sent the weights."""
        may_join = self.fleet.send is not None and not self.fleet.is_left_behind
        return berth.version == self.version or (may_join and not berth.is_lost and not berth.group.is_ready)

    def _cut_short(self) -> None:
        """Asks the groups for what they have written, and keeps that."""
        for place, berth in enumerate(self.fleet.berths):
            if self.ledger.held(place):
                berth.group.say({"do": "abort"})
        for place, berth in enumerate(self.fleet.berths):
            if self.ledger.held(place):
                self._gather(place, berth)
        self.ledger.cut_short()

    def _gather(self, place: int, berth: Berth) -> None:
        """Listens to one group until it has aborted; one that does not is ended."""
        ends = time.monotonic() + min(10.0, self.patience.silence_s)
        try:
            while time.monotonic() < ends:
                if not select.select([berth.group.wire], [], [], LISTEN_S)[0]:
                    continue
                for line in berth.group.read():
                    if line["said"] == "aborted":
                        return
                    self._heed(place, line)
            raise GroupLost(f"{berth.post.name} did not stop at the deadline and was ended")
        except GroupLost as error:
            self._lose(place, str(error))
