"""Deferred imports: what libraries would import or read at the start of every run, though few runs need it."""

import contextlib
import gc
import importlib
import ssl
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pipelines.runtime.interrupts import interrupts_held


@contextlib.contextmanager
def import_phase() -> Iterator[None]:
    """Import modules without the garbage collector, which would walk their objects again and again, and to the end.

    Later collections skip these objects too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with interrupts_held():
            yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def defer_imports() -> None:
    """Let libraries import and read at their first use what they would import or read at their own import.

    To be called before the first array of the process, and before aiohttp and genai-prices are imported.
    """
    _defer_pandas()
    _defer_module("pyarrow.compute")  # its functions are made from a list of the library's, for the first commit
    _defer_certificates()
    _defer_module("httpx2")  # genai-prices downloads newer prices with it, if it is asked to


def _defer_pandas() -> None:
    """Let pyarrow import pandas only for a conversion from or to pandas: it takes 0.3 s and 30 MB.

    pyarrow looks for pandas once, and again before a conversion.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    sys.meta_path.insert(0, _WithoutPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_WithoutPandas)


class _WithoutPandas:
    """A finder of modules that finds no pandas."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError("not needed yet", name=name)
        return None


def _defer_certificates() -> None:
    """Import aiohttp without the system's certificates: it reads them twice, and most runs have contexts of their own.

    Its two contexts read them before their first connection.
    """
    if "aiohttp" in sys.modules:
        return
    contexts: list[ssl.SSLContext] = []
    # The method is the base class's; this hides it.
    setattr(ssl.SSLContext, _READ_CERTIFICATES, lambda context: contexts.append(context))
    try:
        import aiohttp  # noqa: F401
    finally:
        delattr(ssl.SSLContext, _READ_CERTIFICATES)
    for context in contexts:
        context.__class__ = _ContextWithLateCertificates


_READ_CERTIFICATES = "set_default_verify_paths"


class _ContextWithLateCertificates(ssl.SSLContext):
    """A context that reads the system's certificates before its first connection."""

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return _with_certificates(self).wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return _with_certificates(self).wrap_socket(*args, **options)


def _with_certificates(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_default_verify_paths()
    context.__class__ = ssl.SSLContext
    return context


def _defer_module(name: str) -> None:
    """Let a module be imported when its first attribute is asked for."""
    sys.modules.setdefault(name, _DeferredModule(name))


class _DeferredModule(ModuleType):
    """Stands for a module that is not imported yet. LazyLoader's would be imported by the next `import` of its name."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
