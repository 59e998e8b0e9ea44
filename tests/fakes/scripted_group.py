"""A vLLM group that needs no vLLM: it speaks the same lines and misbehaves as its order's folder says.

It writes token `10 + place` with log-probability -0.5 at every place, two tokens a piece, and ends by length. A fault
that speaks of halves has it tell the first piece of a response alone, and all others when weights have come.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

REPORT = {"bytes": 8, "bound": 8, "local_bytes": 0, "messages": 1, "seconds": 0.1}
NAN = float("nan")


class Script:
    """`marks` is a folder where faults that happen once leave a file."""

    def __init__(self, wire: socket.socket, order: dict, heard: bytes) -> None:
        self.wire, self.fault, self.marks = wire, Path(order["folder"]).name, Path(order["folder"]).parent
        self.heard = heard
        self.asleep: list[str] = []
        self.version = -1
        self.held_back: list[list] = []
        """Pieces that are told when weights come."""

    def say(self, said: str, **facts: object) -> None:
        self.wire.sendall(json.dumps({"said": said, **facts}).encode() + b"\n")

    def is_first(self) -> bool:
        """Whether this fault has not happened to any group yet."""
        try:
            (self.marks / "happened").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def write(self, requests: list[dict]) -> None:
        if self.fault == "dies once" and self.is_first():
            one = requests[0]
            self.say("wrote", pieces=[[one["id"], 0, [10], [-0.5], "", self.version]])
            os._exit(3)
        if self.fault == "always dies":
            os._exit(3)
        if self.fault == "hangs once" and self.is_first():
            time.sleep(3600)
        if self.fault == "never ends":
            self.say("wrote", pieces=[[one["id"], 0, [10, 11], [-0.5, -0.5], "", self.version] for one in requests])
            return
        pieces = [piece for one in requests for piece in self.pieces(one)]
        if "halves" in self.fault and self.version == 0:
            self.held_back = [piece for piece in pieces if piece[1]]
            pieces = [piece for piece in pieces if not piece[1]]
        self.say("wrote", pieces=pieces[::-1] if self.fault == "another order" else pieces)

    def pieces(self, request: dict) -> list[list]:
        id, room = request["id"], request["room"]
        place = len(request["tokens"]) - 1
        pieces: list[list] = []
        for at in range(0, room, 2):
            tokens = [10 + place + at + step for step in range(min(2, room - at))]
            finish = "length" if at + 2 >= room else ""
            pieces.append([id, at, tokens, [-0.5] * len(tokens), finish, self.version])
        if id == 1:
            match self.fault:
                case "wrong count":
                    pieces[-1][3] = pieces[-1][3][1:]
                case "nan":
                    pieces[-1][3][0] = NAN
                case "duplicate":
                    pieces.insert(1, pieces[0])
                case "reorder":
                    pieces.reverse()
                case "too many":
                    pieces[-1][2], pieces[-1][3] = [1] * 9, [-0.5] * 9
                case "another's":
                    pieces.append([99, 0, [1], [-0.5], "stop", self.version])
        return pieces

    def obey(self, command: dict) -> None:
        if self.lacks(command["do"]):
            self.say("failed", what=command["do"], why=f"RuntimeError: the memory of {self.asleep} is given back")
            return
        match command["do"]:
            case "write" if self.fault == "refuses":
                self.say("refused", rows=[[command["requests"][1]["id"], "a token out of the vocabulary"]])
                self.write([one for place, one in enumerate(command["requests"]) if place != 1])
            case "write":
                self.write(command["requests"])
            case "abort":
                self.say("aborted")
            case "open":
                self.say("opened")
            case "receive" if self.may_fall("dies receiving") and self.is_first():
                os._exit(3)
            case "receive" if self.may_fall("is stopped receiving") and self.is_first():
                os.kill(os.getpid(), signal.SIGSTOP)
            case "receive" if self.fault == "receives nothing":
                self.say("failed", what="receive", why="TransferError: digest is 1 where 2 was due")
            case "receive":
                self.receive(command["version"])
            case "score":
                self.say(
                    "scored",
                    rows=[[one["id"], [-0.5] * (len(one["tokens"]) - one["start"])] for one in command["requests"]],
                )
            case "sleep":
                self.asleep = ["weights", "kv_cache"]
                self.say("obeyed")
            case "wake" if self.fault == "dies waking once" and self.is_first():
                os._exit(3)
            case "wake":
                self.asleep.remove(command["part"])
                self.say("obeyed")

    def receive(self, version: int) -> None:
        """What was held back is told at once with the answer: a piece by the version before, the others by this."""
        first, others = (
            [piece for piece in self.held_back if (piece[1] == 2) == is_first] for is_first in (True, False)
        )
        lines = [
            {"said": "wrote", "pieces": first},
            {"said": "received", "reports": [{"version": version, **REPORT}]},
            {"said": "wrote", "pieces": [[*piece[:5], version] for piece in others]},
        ]
        self.version, self.held_back = version, []
        self.wire.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines if line.get("pieces") != []))

    def may_fall(self, fault: str) -> bool:
        """Whether it has this fault; in halves it first gets the weights that it writes with."""
        return self.fault == f"{fault} once" or (self.fault == f"{fault} between halves" and self.version == 0)

    def lacks(self, command: str) -> bool:
        """Whether this cannot be done with the memory that is left."""
        needs = {"write": {"weights", "kv_cache"}, "score": {"weights", "kv_cache"}, "receive": {"weights"}}
        return bool(needs.get(command, set()) & {*self.asleep})

    def serve(self) -> None:
        if self.fault == "never starts":
            print("no such model", file=sys.stderr, flush=True)
            os._exit(1)
        self.say("ready")
        while True:
            while b"\n" not in self.heard:
                data = self.wire.recv(1 << 20)
                if not data:
                    return
                self.heard += data
            line, _, self.heard = self.heard.partition(b"\n")
            self.obey(json.loads(line))


def main(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as wire:
        heard = b""
        while b"\n" not in heard:
            heard += wire.recv(1 << 20)
        line, _, rest = heard.partition(b"\n")
        Script(wire, json.loads(line), rest).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
