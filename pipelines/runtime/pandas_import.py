"""Import of pandas: pyarrow would import an installed pandas with its first array, though a run has no use for it."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


def defer_pandas() -> None:
    """Let pyarrow import pandas only for a conversion from or to pandas: it takes 0.3 s and 30 MB.

    To be called before the first array of the process. pyarrow looks for pandas once, and again before a conversion.
    """
    if "pandas" in sys.modules:
        return
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
