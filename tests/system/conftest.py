"""The fixture that makes builds of tiny models quick, for those that tests of the command line run in this process."""

from __future__ import annotations

from tests.leptonc.conftest import _shared  # noqa: F401
