"""Lint: what a model costs without need, what saturates, what a runtime will stumble over; each with price and mend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from tinykd.errors import ConfigError, nearest
from tinykd.lint import container, scales, structure
from tinykd.lint.base import ERROR, NOTE, SEVERITIES, WARNING, Finding, Model, Prices, Rule

__all__ = ["ERROR", "NOTE", "RULES", "SEVERITIES", "WARNING", "Finding", "Model", "Prices", "Rule", "check", "chosen"]

RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.id: rule for rule in (*structure.RULES, *scales.RULES, *container.RULES)}
)


def chosen(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> list[Rule]:
    """Return the rules to apply: the selected ones (all, when none is), less the ignored ones.

    Raises:
        ConfigError: there is no such rule.
    """
    wanted, unwanted = list(select), set(ignore)
    for name in (*wanted, *unwanted):
        if name not in RULES:
            raise ConfigError(f"there is no lint rule '{name}'.{nearest(name, RULES)}", "tinykd lint --list-rules")
    return [rule for name, rule in RULES.items() if (not wanted or name in wanted) and name not in unwanted]


def check(model: Model, rules: Iterable[Rule]) -> list[Finding]:
    """Return what the rules find: the worst first, then in the order of the ops; findings about the file last."""
    found = [finding for rule in rules for finding in rule.check(model)]
    last = len(model.graph.ops)
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), last if f.op is None else f.op, f.rule))
