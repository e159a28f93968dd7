from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
import pytest

from typst_lit.typesetting.typesetter import Typesetter


@pytest.fixture(scope="module")
def typesetter() -> Iterator[Typesetter]:
    with Typesetter(workers=1) as typesetter:
        yield typesetter


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Returns the worker processes that were started since the test began."""

    def workers() -> list[psutil.Process]:
        running = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        return [child for child in running if "typst_lit.typesetting.worker" in child.cmdline()]

    before = workers()
    return lambda: [child for child in workers() if child not in before]
