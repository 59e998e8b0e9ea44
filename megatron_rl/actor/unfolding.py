"""How large and how deep the value of a pickle is, told from its opcodes, with what it shares counted wherever it is.

A few bytes name one tuple twice in a second, and that one twice in a third: thirty such lines are built at once, and
hashed, compared or printed in a billion steps. What checkpoints pickle is hardly shared, and never deep.
"""

from __future__ import annotations

import pickletools
from typing import Any, Final, NamedTuple

TIMES: Final = 8
"""How many times its pickle a value may weigh; those of checkpoints weigh about as much as their pickles."""
ALWAYS: Final = 4096
DEPTH: Final = 100
"""How deep a value may be nested: hashing one that is much deeper would end the process."""
CHARACTERS: Final = 64
"""As many characters or bytes weigh as much as a value."""

_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_FILLS: Final = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_NAMES: Final = ("GLOBAL", "STACK_GLOBAL")
_FILLED_LATER: Final = (pickletools.pylist, pickletools.pydict, pickletools.pyset, pickletools.anyobject)
_SMALL: Final = 0
_MARK: Final = -1


class _Use(NamedTuple):
    """What an opcode does with the stack: how many values it takes, or all above the mark, and what it leaves."""

    taken: int
    is_to_mark: bool
    leaves: bool
    is_small: bool
    """Whether what it makes of nothing can never hold anything."""


def _use(opcode: pickletools.OpcodeInfo) -> _Use:
    before, after = opcode.stack_before, opcode.stack_after
    return _Use(
        taken=len(before) - (opcode.name in _FILLS),
        is_to_mark=pickletools.markobject in before,
        leaves=bool(after),
        is_small=opcode.name in _NAMES or not (after and after[0] in _FILLED_LATER),
    )


_USES: Final = {opcode.name: _use(opcode) for opcode in pickletools.opcodes}
_PLAIN: Final = frozenset(name for name, use in _USES.items() if use == _Use(0, False, True, True)) - {*_GETS, "MARK"}


class Unfolding:
    """Plays a pickle's opcodes, one `take` each, and weighs what they make; ValueError where it is no sound pickle.

    A value is a number, and `_parts[number]` are those it holds: a list that is filled after it was shared is fuller
    wherever it is. Every value that holds nothing and never will is one.
    """

    def __init__(self) -> None:
        self._parts: list[list[int]] = [[]]
        self._own_weight = [1]
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}
        self._dropped: list[int] = []
        self._played = self._written = 0

    def take(self, name: str, argument: Any) -> None:  # noqa: ANN401  # whatever an opcode may carry
        """Plays the opcode of this name."""
        self._played += 1
        weight = 1
        if isinstance(argument, str | bytes | bytearray):
            weight += len(argument) // CHARACTERS
        self._written += weight
        if name in _PLAIN and weight == 1:
            self._stack.append(_SMALL)
        elif name in _GETS:
            if argument not in self._memo:
                raise ValueError(f"it has no value {argument}")
            self._stack.append(self._memo[argument])
        elif name == "MEMOIZE" or name in _PUTS:
            self._put(len(self._memo) if name == "MEMOIZE" else argument)
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name == "DUP":
            self._stack.append(self._top())
        elif name in _FILLS:
            held = self._taken(name)
            if self._top() == _SMALL:
                raise ValueError("it fills what cannot be filled")
            self._parts[self._top()].extend(held)
        elif name != "STOP":
            self._make(name, weight)

    def end(self) -> None:
        """Returns if everything that was made can be worked with; ValueError, saying why not, otherwise."""
        everything = self._new(self._dropped + [value for value in self._stack if value != _MARK], 0)
        weights, depths = self._measured(everything)
        if depths[everything] > DEPTH:
            raise ValueError(f"it nests values more than {DEPTH} deep")
        if weights[everything] > self._most:
            raise ValueError(f"what it shares unfolds to more than {self._most:,} values")

    @property
    def _most(self) -> int:
        return TIMES * self._written + ALWAYS

    def _put(self, number: int) -> None:
        # The unpickler makes room for all smaller numbers.
        if not 0 <= number < self._played:
            raise ValueError(f"it numbers a value {number}")
        self._memo[number] = self._top()

    def _make(self, name: str, weight: int) -> None:
        held, use = self._taken(name), _USES[name]
        if not use.leaves:
            self._dropped += held
        elif name in _NAMES or (use.is_small and not held and weight == 1):
            self._stack.append(_SMALL)
        else:
            self._stack.append(self._new(held, weight))

    def _new(self, held: list[int], weight: int) -> int:
        self._parts.append(held)
        self._own_weight.append(weight)
        return len(self._parts) - 1

    def _taken(self, name: str) -> list[int]:
        """What the opcode takes off the stack; what it fills stays there."""
        use, held = _USES[name], []
        if use.is_to_mark:
            while (value := self._pop()) != _MARK:
                held.append(value)
            return held
        held = [self._pop() for _ in range(use.taken)]
        if _MARK in held and name != "POP":
            raise ValueError("it takes a value where there is none")
        return [value for value in held if value != _MARK]

    def _pop(self) -> int:
        if not self._stack:
            raise ValueError("it takes a value where there is none")
        return self._stack.pop()

    def _top(self) -> int:
        if not self._stack or self._stack[-1] == _MARK:
            raise ValueError("it uses a value where there is none")
        return self._stack[-1]

    def _measured(self, whole: int) -> tuple[dict[int, int], dict[int, int]]:
        """The weight and the depth of every value, parts before what they are parts of."""
        weights, depths = {_SMALL: 1}, {_SMALL: 0}
        open_, begun = [whole], set()
        while open_:
            value = open_[-1]
            missing = [part for part in self._parts[value] if part not in weights]
            if value not in begun:
                begun.add(value)
                if not begun.isdisjoint(missing):
                    raise ValueError("it has a value that holds itself")
                open_ += missing
                continue
            open_.pop()
            if value not in weights:
                parts = self._parts[value]
                weight = self._own_weight[value] + sum(weights[part] for part in parts)
                weights[value] = min(weight, self._most + 1)
                depths[value] = 1 + max((depths[part] for part in parts), default=0)
        return weights, depths
