"""What porters start on other machines in the tests: by name, as whatever crosses to them."""

from __future__ import annotations

import socket
import subprocess
import sys


def greet(line: socket.socket) -> subprocess.Popen[bytes]:
    """Says hello, then waits for the end of its line."""
    code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'hello\\n'); s.recv(1)"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(line.fileno())], pass_fds=(line.fileno(),), start_new_session=True
    )


def refuse(line: socket.socket) -> subprocess.Popen[bytes]:
    raise OSError("no room in the folder for logs")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
