"""A moe-serve of one's own, on free loopback ports, for the time of a measurement."""

from __future__ import annotations

import collections
import os
import pathlib
import re
import shutil
import subprocess
import threading
from types import TracebackType

from scion.evaluation.texts import EvalError

_READY = re.compile(r"^moe-serve: ready http=(\S+) grpc=\S+$")
_STOP_SECONDS = 30


def find_program(name: str = "moe-serve") -> pathlib.Path:
    """In $SCION_BIN, on the PATH, or in the build of the checkout that this package lies in."""
    folders = [pathlib.Path(folder) for folder in [os.environ.get("SCION_BIN")] if folder]
    if on_path := shutil.which(name):
        folders.append(pathlib.Path(on_path).parent)
    folders.append(pathlib.Path(__file__).resolve().parents[4] / "build/release/bin")
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return folder / name
    raise EvalError(f"no {name} in $SCION_BIN, on the PATH or in build/release/bin: build it, or name a running one by "
                    "--server, or measure in PyTorch by --engine torch")


class LocalServer:
    """`with LocalServer(model) as server: server.url` is its address, "http://127.0.0.1:41234"."""

    def __init__(self, model: pathlib.Path, program: pathlib.Path | None = None) -> None:
        self._process = subprocess.Popen(
            [str(program or find_program()), str(model), "--http-port", "0", "--grpc-port", "0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        self._last_words: collections.deque[str] = collections.deque(maxlen=5)
        assert self._process.stdout and self._process.stderr
        # Both are read to their end, so that the server never waits for a reader.
        self._listener = threading.Thread(target=self._last_words.extend, args=(self._process.stderr,), daemon=True)
        self._listener.start()
        ready = next(filter(None, map(_READY.match, self._process.stdout)), None)
        if ready is None:
            self._process.wait()
            self._listener.join()
            raise EvalError(f"moe-serve ended without serving {model}: {''.join(self._last_words).strip()}")
        self.url = f"http://{ready[1]}"
        threading.Thread(target=collections.deque, args=(self._process.stdout, 0), daemon=True).start()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
