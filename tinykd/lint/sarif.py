"""Writes findings as SARIF 2.1.0, which CI systems show beside a change.

Source: OASIS Standard "Static Analysis Results Interchange Format (SARIF) Version 2.1.0", 2020; sections in comments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

import tinykd
from tinykd.ir import Graph
from tinykd.lint.base import Finding, Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# 3.27.10: the levels are "none", "note", "warning", "error"; ours have the same names.


def sarif(
    findings: Sequence[Finding], rules: Sequence[Rule], graph: Graph, path: PurePath, sha256: str, num_bytes: int
) -> dict[str, Any]:
    """Return the SARIF log of one run.

    Args:
        findings: what was found.
        rules: what was looked for.
        graph: where ops have their sources.
        path: the model, as the reader of the log should name it: relative to the repository.
        sha256: of the file, 64 hex digits.
        num_bytes: of the file.
    """
    index_of = {rule.id: index for index, rule in enumerate(rules)}
    # 3.4.3: a URI reference; an absolute path becomes a file URI.
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "tinykd",
                        "version": tinykd.__version__,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "invocations": [{"executionSuccessful": True}],
                "artifacts": [
                    {
                        "location": {"uri": uri},
                        "length": num_bytes,
                        "mimeType": "application/octet-stream",
                        "hashes": {"sha-256": sha256},
                    }
                ],
                "results": [_result(item, index_of[item.rule], graph, uri, num_bytes) for item in findings],
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(finding: Finding, rule_index: int, graph: Graph, uri: str, num_bytes: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": uri, "index": 0},
            # 3.30.11: a binary artifact has regions of bytes; an op has no place of its own in a flatbuffer.
            "region": {"byteOffset": 0, "byteLength": num_bytes},
        }
    }
    source = ""
    if finding.op is not None:
        op = graph.ops[finding.op]
        source = op.source or op.outputs[0]
        # 3.33: where in the program's own terms; its kinds are open.
        location["logicalLocations"] = [
            {"name": source, "fullyQualifiedName": f"{finding.op}/{op.kind}/{source}", "kind": "operator"}
        ]
    where = "" if finding.op is None else f"op {finding.op} ({graph.ops[finding.op].kind}, {source}): "
    # 3.27.17: stays the same when the op's index changes, so that a finding is known again.
    fingerprint = hashlib.sha256(f"{finding.rule}\n{source}".encode()).hexdigest()[:16]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": finding.severity,
        "message": {"text": f"{where}{finding.message}. {finding.mend}"},
        "locations": [location],
        "partialFingerprints": {"ruleAndSource/v1": fingerprint},
        "properties": {"mend": finding.mend, "price": dict(finding.price)},
    }
