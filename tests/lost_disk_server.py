"""Shows `FOLDER/below` as `FOLDER/disk` to the kernel, in its own words (linux/fuse.h), or the error in `FOLDER/fault`.

That says `ERROR AFTER`: so many questions are still answered.

It is a process of its own, since a page fault of its own could never be answered.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

_HEADER = struct.Struct("<IIQQIIII")
_ROOT = 1
_NO_ANSWER = (2, 36, 42)
"""FORGET, INTERRUPT, BATCH_FORGET."""
_RENAME, _RENAME_2 = 12, 45


class _Server:
    """Answers the kernel about the files below a folder, one question at a time."""

    def __init__(self, folder: Path) -> None:
        self._below, self._fault = str(folder / "below"), str(folder / "fault")
        self._paths, self._last = {_ROOT: ""}, _ROOT
        self._asked = (0, 0)
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: lambda node, said: self._entry(node, _name(said)),
            3: lambda node, _: self._attributes(node),
            4: self._set,
            9: self._make_folder,
            10: lambda node, said: _done(os.unlink, self._inside(node, _name(said))),
            11: lambda node, said: _done(os.rmdir, self._inside(node, _name(said))),
            _RENAME: lambda node, said: self._rename(node, said, 8),
            _RENAME_2: lambda node, said: self._rename(node, said, 16),
            14: lambda node, said: self._open(node, struct.unpack_from("<I", said)[0]),
            15: lambda _, said: self._read(said),
            16: lambda _, said: self._write(said),
            17: lambda *_: struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0),
            18: lambda _, said: _done(os.close, struct.unpack_from("<Q", said)[0]),
            20: lambda _, said: _done(os.fsync, struct.unpack_from("<Q", said)[0]),
            25: lambda *_: b"",
            26: lambda *_: struct.pack("<4I2H2I2HI28x", 7, 31, 0, 0, 8, 8, 1 << 17, 1, 32, 0, 0),
            27: lambda *_: struct.pack("<QII", 0, 0, 0),
            28: self._list,
            29: lambda *_: b"",
            30: lambda *_: b"",
            34: lambda *_: b"",
            35: self._create,
        }

    def answer(self, question: bytes) -> bytes | None:
        _, kind, unique, node, *_ = _HEADER.unpack_from(question)
        if kind in _NO_ANSWER:
            return None
        code, said = 0, b""
        try:
            self._may_fail()
            if kind not in self._answers:
                raise OSError(errno.ENOSYS, "not offered")
            said = self._answers[kind](node, question[_HEADER.size :])
        except OSError as error:
            code = -(error.errno or errno.EIO)
        return struct.pack("<IiQ", 16 + len(said), code, unique) + said

    def _may_fail(self) -> None:
        try:
            with open(self._fault) as stream:
                code, after, number = *map(int, stream.read().split()), os.fstat(stream.fileno()).st_ino
        except FileNotFoundError:
            return
        self._asked = (number, self._asked[1] + 1 if self._asked[0] == number else 1)
        if self._asked[1] > after:
            raise OSError(code, "the disk is gone")

    def _path(self, node: int) -> str:
        return self._below + self._paths[node]

    def _inside(self, node: int, name: str) -> str:
        return f"{self._path(node)}/{name}"

    def _entry(self, node: int, name: str) -> bytes:
        told, path = _attributes_of(self._inside(node, name)), f"{self._paths[node]}/{name}"
        known = next((number for number, known in self._paths.items() if known == path), None)
        if known is None:
            self._last = known = self._last + 1
            self._paths[known] = path
        return struct.pack("<4Q2I", known, 0, 0, 0, 0, 0) + told

    def _attributes(self, node: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + _attributes_of(self._path(node))

    def _set(self, node: int, said: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", said)
        if valid & 1:
            os.chmod(self._path(node), stat.S_IMODE(struct.unpack_from("<I", said, 68)[0]))
        if valid & 8:
            os.truncate(self._path(node), size)
        return self._attributes(node)

    def _make_folder(self, node: int, said: bytes) -> bytes:
        os.mkdir(self._inside(node, _name(said[8:])))
        return self._entry(node, _name(said[8:]))

    def _rename(self, node: int, said: bytes, names_at: int) -> bytes:
        to = struct.unpack_from("<Q", said)[0]
        old, new = (name.decode() for name in said[names_at:].split(b"\0")[:2])
        os.rename(self._inside(node, old), self._inside(to, new))
        before, after = f"{self._paths[node]}/{old}", f"{self._paths[to]}/{new}"
        gone = [number for number, path in self._paths.items() if path == after or path.startswith(f"{after}/")]
        self._paths |= {number: f"/.gone{number}" for number in gone}
        for number, path in self._paths.items():
            if path == before or path.startswith(f"{before}/"):
                self._paths[number] = after + path[len(before) :]
        return b""

    def _open(self, node: int, flags: int) -> bytes:
        return struct.pack("<QII", os.open(self._path(node), flags & ~os.O_NOFOLLOW & ~os.O_APPEND), 0, 0)

    def _create(self, node: int, said: bytes) -> bytes:
        flags, mode, *_ = struct.unpack_from("<4I", said)
        path = self._inside(node, _name(said[16:]))
        held = os.open(path, (flags | os.O_CREAT) & ~os.O_NOFOLLOW & ~os.O_APPEND, stat.S_IMODE(mode))
        return self._entry(node, _name(said[16:])) + struct.pack("<QII", held, 0, 0)

    def _read(self, said: bytes) -> bytes:
        held, offset, size = struct.unpack_from("<QQI", said)
        return os.pread(held, size, offset)

    def _write(self, said: bytes) -> bytes:
        held, offset, size = struct.unpack_from("<QQI", said)
        return struct.pack("<II", os.pwrite(held, said[40 : 40 + size], offset), 0)

    def _list(self, node: int, said: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", said)
        listed = b""
        for number, name in enumerate([".", "..", *sorted(os.listdir(self._path(node)))][offset:], start=offset + 1):
            encoded = name.encode()
            kind = stat.S_IFMT(os.lstat(self._inside(node, name)).st_mode) >> 12
            one = struct.pack("<QQII", number + 1, number, len(encoded), kind) + encoded
            one += bytes(-len(one) % 8)
            if len(listed) + len(one) > size:
                break
            listed += one
        return listed


def _name(said: bytes) -> str:
    return said.split(b"\0", 1)[0].decode()


def _done(do: Callable[..., object], what: object) -> bytes:
    do(what)
    return b""


def _attributes_of(path: str) -> bytes:
    told = os.lstat(path)
    times = [divmod(when, 10**9) for when in (told.st_atime_ns, told.st_mtime_ns, told.st_ctime_ns)]
    whole, parts = [second for second, _ in times], [part for _, part in times]
    numbers = (told.st_mode, told.st_nlink, told.st_uid, told.st_gid, 0, 4096, 0)
    return struct.pack("<6Q10I", told.st_ino, told.st_size, told.st_blocks, *whole, *parts, *numbers)


def _serve(folder: Path) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"lost", os.fsencode(folder / "disk"), b"fuse.lost", 0, options) != 0:
        print(os.strerror(ctypes.get_errno()), flush=True)
        return
    print("mounted", flush=True)
    server = _Server(folder)
    while True:
        try:
            answer = server.answer(os.read(device, 1 << 18))
            if answer is not None:
                os.write(device, answer)
        except FileNotFoundError:  # the question was taken back
            continue
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
