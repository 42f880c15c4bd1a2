"""What goes wrong inside a storm shall be shown as in a test."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("storm", "aftermath", "tempest", "tempest_check")
