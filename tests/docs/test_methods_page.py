"""docs/methods.md: every method is there, and every line of a recipe in it works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinykd.config import load_recipe
from tinykd.distill import KNOWN_AS, METHODS
from tinykd.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
ROWS = re.findall(r"^\| `(\w+)` \| `- (\{.*?\})` \| ([\d.]+) \|", TEXT, re.MULTILINE)
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]

pytestmark = pytest.mark.skipif(not TEXT, reason="docs/ is not part of this installation")


def test_every_method_has_its_recipe() -> None:
    """The tables name all methods of the registry, each once, and the README counts them right."""
    assert sorted(key for key, _, _ in ROWS) == sorted(METHODS)
    assert f"\n{len(METHODS)} distillation methods" in (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("key", "line", "labels"), ROWS, ids=lambda value: value if value in METHODS else "")
def test_each_line_is_a_sound_recipe(key: str, line: str, labels: str) -> None:
    """The line and its label weight pass all checks of a recipe, and the line names the method of its row."""
    loss = yaml.safe_load(line)
    assert loss["method"] == key
    overrides = [f"distill={json.dumps([loss])}", f"train.label_weight={labels}"]
    if key == "defensive":
        temperature = loss["args"]["temperature"]
        overrides += [f"teacher.train.temperature={temperature}", "teacher.args.width=0.25"]
    load_recipe("smoke", overrides)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: "-".join(block))
def test_each_block_is_a_sound_part_of_a_recipe(block: dict[str, Any]) -> None:
    """The blocks of YAML fit into a recipe with a teacher."""
    load_recipe("cifar10-resnet8-kd", [f"{key}={json.dumps(value)}" for key, value in block.items()])


def test_names_of_other_toolkits_lead_here() -> None:
    """The method names of other toolkits are errors that say what the method is called here, as on the page."""
    assert set(KNOWN_AS.values()) <= set(METHODS)
    for theirs, ours in {"attention": "at", "FITNET": "hint", "abound": "ab", "SPKDLoss": "sp"}.items():
        with pytest.raises(ConfigError, match=f"'{theirs}'. It is called '{ours}' here"):
            load_recipe("smoke", [f"distill.0.method={theirs}"])
