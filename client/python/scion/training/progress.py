"""How far a long run is, on stderr: one line that is written over on a terminal, a line now and then elsewhere."""

import sys
import time

LINE_EVERY_SECONDS = 10.0


class Progress:
    def __init__(self, name: str) -> None:
        self._name = name
        self._is_terminal = sys.stderr.isatty()
        self._next = 0.0
        self._open = False

    def show(self, text: str, at_once: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not at_once:
            return
        self._next = now + (0.2 if self._is_terminal else LINE_EVERY_SECONDS)
        if self._is_terminal:
            print(f"\r\x1b[K{self._name}: {text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._open = False
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(0, seconds)), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
