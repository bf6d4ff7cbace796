"""Models are tested under strict promotion."""

import pytest


@pytest.fixture(autouse=True)
def _strict(strict_promotion: None) -> None: ...
