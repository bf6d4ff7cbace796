"""Values as JSON has them."""

import math
from collections.abc import Mapping
from typing import Any


def as_json(value: Any) -> Any:
    """The value with lists for tuples, and null for numbers that are not finite: JSON has neither NaN nor infinity."""
    match value:
        case Mapping():
            return {key: as_json(item) for key, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
