"""Run Python functions somewhere else: every call a durable job with one ordered event stream."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
