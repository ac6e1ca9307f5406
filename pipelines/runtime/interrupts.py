"""Interrupts: Ctrl-C and SIGTERM, while no event loop of a run handles them."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_was_interrupted = False


def raise_interrupts() -> None:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt in the main thread, and end the process where that is lost."""
    for number in SIGNALS:
        signal.signal(number, _raise_interrupt)
    sys.unraisablehook = _exit_on_interrupt


def was_interrupted() -> bool:
    """Whether KeyboardInterrupt was raised: an error that follows comes from a library that it has interrupted."""
    return _was_interrupted


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Raise what arrives within the block at its end: an import that breaks off may end the process with a crash."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    global _was_interrupted
    _was_interrupted = True
    raise KeyboardInterrupt


def _exit_on_interrupt(unraisable: "sys.UnraisableHookArgs") -> None:
    """Exit at once if Ctrl-C arrived where it cannot be raised, such as in a callback from C: a kill is safe."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(130)
    sys.__unraisablehook__(unraisable)
