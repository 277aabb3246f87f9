"""What tests do when a real service is missing."""

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip on a laptop, fail in CI: there a skipped test would be a green lie."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI=true says that it must be there.")
    pytest.skip(what)
