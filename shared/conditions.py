"""Placeholder until the branch `cel` is merged."""

from typing import Any


class ConditionError(Exception):
    message = "no conditions yet"


def references(text: str) -> set[str]:
    return set()


def evaluate(text: str, context: dict[str, Any]) -> Any:
    raise ConditionError
