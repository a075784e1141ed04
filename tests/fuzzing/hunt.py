"""Draws graphs and holds the rules against them until one breaks."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from fuzzing.check import Judge, examine_all, reduced
from fuzzing.kinds import MOST_OPS, graphs
from fuzzing.record import Failure
from tinykd.ir import Graph

PACKAGES = ("hypothesis", "numpy", "tflite-micro")


@dataclass
class Catch:
    """What a hunt brought.

    Attributes:
        graphs: how many were examined without fault.
        ops: op kind -> how many ops of it those graphs had.
        failure: the one that broke a rule, shrunk, or None.
    """

    graphs: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    failure: Failure | None = None


class _BrokenRuleError(Exception):
    pass


def hunt(
    kind: str,
    seed: int,
    count: int,
    kinds: tuple[str, ...],
    judge: Judge,
    most_ops: int = MOST_OPS,
    *,
    wide: bool = False,
) -> Catch:
    """Examine `count` graphs of `kinds` that each contain an op of `kind`; stop at the first that breaks a rule.

    The same seed draws the same graphs with the same version of hypothesis.

    Args:
        wide: see `graphs`.
    """
    catch = Catch()
    broken: list[tuple[Graph, str]] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(graphs(kind, kinds, most_ops, wide=wide))
    def examine_one(graph: Graph) -> None:
        if found := examine_all(graph, judge):
            broken.append((graph, found[0]))
            raise _BrokenRuleError(found[0])
        if not broken:
            catch.graphs += 1
            catch.ops.update(op.kind for op in graph.ops)

    try:
        examine_one()
    except (_BrokenRuleError, hypothesis.errors.FlakyFailure):
        # hypothesis ends with the smallest graph that it found.
        graph, _ = broken[-1]
        found = examine_all(graph, judge)
        rule, problem = found if found is not None else (broken[-1][1], None)
        if problem is None:
            raise
        graph, problem = reduced(rule, graph, problem, judge)
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        catch.failure = Failure(
            rule,
            problem.text,
            graph,
            problem.inputs,
            f"python -m benchmarks.fuzz --kind {kind} --seed {seed} --count {count} --most-ops {most_ops}"
            f"{judge.options}; "
            f"Python {platform.python_version()}, {versions}",
        )
    return catch
