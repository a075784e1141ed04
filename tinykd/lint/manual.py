"""Writes docs/lint.md from the registry: python -m tinykd.lint.manual > docs/lint.md."""

from __future__ import annotations

import sys

from tinykd.lint import RULES, SEVERITIES

_HEAD = """# Lint

`tinykd lint MODEL.tflite` (or a run folder) names what a model costs without need, what saturates, and what a runtime
will stumble over. Each finding has a price, measured where it can be by planning the graph with and without it, and a
mend.

```sh
tinykd lint model.tflite                               # a table
tinykd lint model.tflite --json                        # one JSON object
tinykd lint model.tflite --sarif lint.sarif --strict   # for CI: annotations, and exit code 3 on warnings
tinykd lint model.tflite --select pad-op,float-edge    # only these rules; --ignore leaves some out
tinykd lint --list-rules
```

Findings are no errors of the command: it exits with 0. With `--strict` it exits with 3 when there is an error or a
warning. A model that cannot be read at all gets the reader's message and exit code 4.

| severity | meaning |
| --- | --- |
| error | results are wrong or undefined somewhere |
| warning | it costs memory, time or accuracy |
| note | good to know |

| price | meaning |
| --- | --- |
| `arena_bytes` | SRAM for activations, in stock TFLite Micro under the best plan |
| `constant_bytes` | flash for weights and other constants |
| `macs` | multiply-accumulates of an inference |
| `moved_bytes` | bytes that are copied at every inference |
| `ops` | ops that are called |

SARIF 2.1.0: each op is a logical location `index/kind/source`, the file is the physical one, levels have the names
above, and price and mend are properties of the result. Fingerprints depend on rule and source, so that a finding is
known again when ops move.

## Rules

This part is generated from the rules: `python -m tinykd.lint.manual > docs/lint.md`.
"""


def manual() -> str:
    """Return the page."""
    parts = [_HEAD]
    for rule in RULES.values():
        worst = SEVERITIES.index(rule.severity)
        parts.append(f"### {rule.id}\n\n**{rule.title}** (at most {SEVERITIES[worst]}). {rule.why}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(manual())
