"""Waiting for ranks: every wait has a name and a deadline, and a rank that dies, fails or falls silent ends it."""

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from megatron_rl.cluster.heartbeat import Heartbeat
from megatron_rl.cluster.member import Member, dump_stacks
from megatron_rl.cluster.rank import Answer, Beat
from megatron_rl.reshard.digest import TransferError

T = TypeVar("T")
GRACE_S = 5.0
"""How long the other ranks may take to tell of a failure that one of them told of."""
ANSWER_S = 5.0
"""How long ranks that took too long may take to tell what they are at."""
TICK_S = 0.25
ALARM = signal.SIGRTMIN
"""Interrupts a driver that is busy elsewhere when a rank is lost."""


class RankFailure(RuntimeError):
    """Ranks died, failed, or were not heard of in time; where one left a traceback, it stands last."""


class Watch:
    """The driver's waits. When a rank is lost all ranks write their stacks and end, and the driver is interrupted."""

    def __init__(self, members: Sequence[Member], heartbeat_s: float) -> None:
        self.members = tuple(members)
        self.is_over = False
        """Whether the ranks have been ended."""
        self._is_losing = False
        """Set before `_found`, which waits for the stacks: a rank let go on to write them may answer after all."""
        self._found = ""
        self._is_waiting = False
        self._is_main = threading.current_thread() is threading.main_thread()
        self._before: Any = signal.signal(ALARM, self._interrupt) if self._is_main else None
        self._heartbeat = Heartbeat(self.members, heartbeat_s, self._lose)

    def gather(
        self, what: str, refs: Sequence[ray.ObjectRef], timeout_s: float, beside: Future[T] | None = None
    ) -> list[Any]:
        """Every rank's result; RankFailure where one has none, or where what the driver does `beside` fails."""
        self._is_waiting = True
        try:
            answers = self._answers(what, refs, timeout_s, beside)
        finally:
            self._is_waiting = False
        failed = sorted((answer.at, rank) for rank, answer in answers.items() if answer.failure)
        if failed:
            first = failed[0][1]
            error, failure = answers[first].error, answers[first].failure.rstrip()
            if error is None or (isinstance(error, TransferError) and len(answers) < len(refs)):
                raise self.give_up(f"{self.members[first]} failed first, in '{what}':\n{failure}")
            raise error
        return [answers[rank].result for rank in range(len(refs))]

    def expect_answers(self) -> None:
        """The ranks have started: from here on one that falls silent is lost."""
        self._heartbeat.expect_answers()

    def look_also(self, look: Callable[[], str]) -> None:
        """What this tells of ends the ranks as the loss of one of them does."""
        self._heartbeat.look_also(look)

    def give_up(self, reason: str) -> RankFailure:
        """Ends every rank; gives what to raise."""
        self.close()
        return RankFailure(f"the ranks' logs are in {self.members[0].log.parent}. {reason}")

    def close(self) -> None:
        """Ends the listening, and every rank's process."""
        self.is_over = True
        self._heartbeat.close()
        for member in self.members:
            member.kill()
        if self._before is not None:
            signal.signal(ALARM, self._before)
            self._before = None

    def _answers(
        self, what: str, refs: Sequence[ray.ObjectRef], timeout_s: float, beside: Future[T] | None
    ) -> dict[int, Answer]:
        """All answers; fewer where one tells of a failure and others do not follow."""
        deadline = time.monotonic() + timeout_s
        waiting = {ref: rank for rank, ref in enumerate(refs)}
        answers: dict[int, Answer] = {}
        while waiting and time.monotonic() < deadline:
            self._raise_if_lost(what)
            for ref in ray.wait(list(waiting), timeout=TICK_S)[0]:
                rank = waiting.pop(ref)
                answers[rank] = self._answer(what, self.members[rank], ref)
                if answers[rank].failure:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            if (error := _failure_of(beside)) is not None:
                # A transfer that failed is given up by the ranks too, which then live on and may send once more.
                grace_s = GRACE_S if isinstance(error, TransferError) else 0.0
                deadline = min(deadline, time.monotonic() + grace_s)
        self._raise_if_lost(what)
        if waiting and not any(answer.failure for answer in answers.values()):
            saved = dump_stacks(self.members)
            if (error := _failure_of(beside)) is not None:
                raise self.give_up(f"'{what}' failed in the driver: {error}") from error
            late = "; ".join(str(self.members[rank]) for rank in waiting.values())
            raise self.give_up(f"'{what}' was given {timeout_s:g} s and took longer on {late}; {saved}")
        return answers

    def _raise_if_lost(self, what: str) -> None:
        while self._is_losing and not self._found:
            time.sleep(TICK_S)
        if self._found:
            raise self.give_up(f"{self._found}; the driver waited for '{what}'")

    def _answer(self, what: str, member: Member, ref: ray.ObjectRef) -> Answer:
        try:
            answer: Answer = ray.get(ref)
        except RayActorError:
            dump_stacks(self.members)
            reason = f"{member} died in '{what}'; the last of its log:\n{member.last_words()}\n{member} died"
            raise self.give_up(reason) from None
        except RayError as error:
            return Answer(failure=f"{type(error).__name__}: {error}", at=time.time())
        return answer

    def _lose(self, reason: str) -> None:
        """Told by the heartbeat, in its thread."""
        self._is_losing = True
        self._found = f"{reason}; {dump_stacks(self.members)}"
        if self._is_main and not self._is_waiting:
            signal.pthread_kill(threading.main_thread().ident or 0, ALARM)

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        if not self._is_waiting and not self.is_over:
            raise self.give_up(self._found)


def await_written(members: Sequence[Member], refs: Sequence[ray.ObjectRef], timeout_s: float) -> None:
    """Waits, in a thread of its own, for the save that all ranks write beside the driver's calls; ends none of them.

    The error of the rank that failed first, where it says all; RankFailure where one died, failed or took too long.
    """
    ends, waiting, failed = time.monotonic() + timeout_s, dict(zip(refs, members, strict=True)), dict[Member, Answer]()
    while waiting and time.monotonic() < ends:
        for ref in ray.wait(list(waiting), timeout=TICK_S)[0]:
            member = waiting.pop(ref)
            try:
                answer: Answer = ray.get(ref)
            except RayError:
                died = f"{member} died in 'save'; {dump_stacks(members)}"
                raise RankFailure(f"{died}; the last of its log:\n{member.last_words()}\n{member} died") from None
            if answer.failure:
                failed[member] = answer
                ends = min(ends, time.monotonic() + GRACE_S)
    if failed:
        first = min(failed, key=lambda member: failed[member].at)
        told = f"{first} failed first, in 'save':\n{failed[first].failure.rstrip()}"
        raise failed[first].error or RankFailure(told)
    if waiting:
        late = _late(list(waiting.values()), len(members), timeout_s)
        raise RankFailure(f"{late}; {dump_stacks(members)} in {members[0].log.parent}")


def _late(late: Sequence[Member], world: int, timeout_s: float) -> str:
    """Who did not end a save in time, told apart by what each is at now; whoever does not answer is at nothing."""
    asked = {member.actor.beat.remote(): member for member in late}
    beats = {asked[ref]: _beat(ref) for ref in ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)[0]}
    return told_apart(late, {member: beat.writing for member, beat in beats.items() if beat}, world, timeout_s)


def told_apart(late: Sequence[Member], at: Mapping[Member, str], world: int, timeout_s: float) -> str:
    """Whose own part is not written, and who only waits for these: no rank ends a save before all have written."""
    own = [member for member in late if at.get(member)]
    wait = [str(member.rank) for member in late if at.get(member) == ""]
    if not own:
        return f"'save' was given {timeout_s:g} s and took longer on {'; '.join(map(str, late))}"
    names = " and ".join(f"rank {each.rank} of {world} (process {each.pid} on {each.machine})" for each in own)
    have, them = ("has not written its part", "it") if len(own) == 1 else ("have not written their parts", "them")
    told = f"{names} {have} of {at[own[0]]} within {timeout_s:g} s"
    if not wait:
        return told
    waiting = f"ranks {', '.join(wait)} wait" if len(wait) > 1 else f"rank {wait[0]} waits"
    return f"{told}; {waiting} for {them}"


def _beat(ref: ray.ObjectRef) -> Beat | None:
    try:
        beat: Beat = ray.get(ref)
    except RayError:
        return None  # whoever died meanwhile is told of by the heartbeat
    return beat


def _failure_of(beside: Future[T] | None) -> BaseException | None:
    return beside.exception() if beside is not None and beside.done() else None
