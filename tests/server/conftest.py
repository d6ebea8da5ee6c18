"""Tests of nodes and workflows in a real server; some look into a model in this process as well."""

from __future__ import annotations

from support import pack  # noqa: F401
