from __future__ import annotations

from pathlib import Path

import pytest

from tests.priors.folders import save_toybox
from tests.toy_generator import save_generator


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped world at toy size: generator, clip (the judge too) and prior."""
    root = tmp_path_factory.mktemp("shipped")
    save_generator(root)
    save_toybox(root / "prior")
    return root
