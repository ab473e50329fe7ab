#!/usr/bin/env python3
"""A store of items."""
from __future__ import annotations

import os.path, sys as system
from . import journal, state as st
from ..base import Base
try:
    import tomllib
except ImportError:
    tomllib = None

LIMIT = 8
opened: dict[str, "Store"] = {}


class Store(Base, metaclass=Meta):
    """Keeps items by name.

    More than LIMIT are refused.
    """

    kind = "store"

    @property
    def size(self) -> int:
        """How many there are."""
        def local(item):
            return len(item)
        return sum(local(item) for item in self.items)

    class Inner:
        async def deep(self): ...


# Opens a store.
@functools.cache
def open_store(path: str,
               mode: str = "r") -> Store:
    import json
    return Store(os.path.join(path, mode))
