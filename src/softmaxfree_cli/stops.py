"""SIGINT and SIGTERM: a command ends where it is, says so in one line, and its exit code tells it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Signals", "Stop"]

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_GRACE = 20.0  # seconds to clean up; torchrun kills after 30
_AGAIN = 0.2  # seconds after which the exception is raised again, if a library has swallowed it
_ONE_PRESS = 1.0  # seconds: torchrun hands on what the whole process group has got already


class Stop(BaseException):
    """A signal asks for the end. No `Exception`, so that nothing on its way takes it for a failure to mend.

    Nor a `KeyboardInterrupt`: the Trainer makes exit code 1 of that.
    """


class Signals:
    """Handles both signals while a command runs.

    While it only imports there is nothing to clean up: it ends at once. Later `Stop` is raised in the main thread,
    again if a library loses it. A second signal, or cleaning up for too long, ends it at once too.

    Args:
        label: what the line begins with.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.raises = False
        """Whether there is something to clean up."""
        self.received: int | None = None
        """The signal that came."""
        self._since = 0.0
        self._own = False  # whether this process reminds itself
        self._left = threading.Event()
        self._process = os.getpid()
        self._before: dict[int, object] = {}
        self._hook: Callable | None = None

    def __enter__(self) -> Self:
        """Install the handlers, but for a signal that is ignored, as under nohup."""
        if threading.current_thread() is threading.main_thread():
            for number in _WORDS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
            self._hook, sys.excepthook = sys.excepthook, self._tell
        return self

    def __exit__(self, *error: object) -> None:
        """Put back what was there."""
        self._left.set()
        if self._hook is not None:
            sys.excepthook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def line(self, number: int, notes: str = "") -> str:
        """Return what to print; nothing in all but the first of several processes.

        Args:
            number: the signal.
            notes: what follows.

        Returns:
            A line, or "".
        """
        first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))
        return f"{self.label}: {_WORDS[signal.Signals(number)]}{notes}\n" if first else ""

    def _tell(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Prints an error that nobody caught, but for that of a forked worker whose parent leaves in mid-sentence."""
        lost = issubclass(kind, ConnectionError | EOFError) and os.getpid() != self._process
        if self._hook is not None and not lost:
            self._hook(kind, error, trace)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its parent ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        own, self._own = self._own, False
        if self.received is None and self.raises:
            self.received, self._since = number, time.monotonic()
            _workers_may_end()
            threading.Thread(target=self._remind, args=(number,), daemon=True).start()
        elif not own and time.monotonic() - self._since > _ONE_PRESS:
            self._leave(number)
        if self.raises and not _on_its_way() and not _in_finalizer(frame):
            raise Stop(number)

    def _remind(self, number: int) -> None:
        while time.monotonic() - self._since < _GRACE:
            if self._left.wait(_AGAIN):
                return
            self._own = True
            os.kill(self._process, number)
        self._leave(number)

    def _leave(self, number: int) -> None:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, self.line(number).encode())
        os._exit(128 + number)


def _workers_may_end() -> None:
    """Workers get the signal too. Neither who waits for them nor torch's handler of ended children is to complain."""
    sys.unraisablehook = lambda unraisable: None
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _on_its_way() -> bool:
    """Whether the main thread cleans up after `Stop` at this moment."""
    error = sys.exception()
    while error is not None and not isinstance(error, Stop):
        error = error.__context__
    return error is not None


def _in_finalizer(frame: FrameType | None) -> bool:
    """Whether Python would print the exception and go on."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None
