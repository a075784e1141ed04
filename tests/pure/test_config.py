"""Recipes: inheritance, overrides, and errors that name everything at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tinykd.config import RECIPES, Recipe, list_recipes, load_recipe
from tinykd.errors import ConfigError

MINIMAL = "data: {name: mnist5k}\nstudent: {model: resnet8}\n"


def write(folder: Path, name: str, text: str) -> Path:
    """Write a recipe file."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_every_recipe_of_the_package_is_valid() -> None:
    """Each YAML file below recipes/ loads, and there are as many recipes as files."""
    files = list(RECIPES.rglob("*.yaml"))
    assert len(files) >= 6
    assert len(list_recipes()) == len(files)
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description, f"{name} does not say what it is for"


def test_package_offers_the_documented_recipes() -> None:
    """The recipes that the documentation and CI rely on are there."""
    assert {"mnist5k-kd", "cifar10-resnet8-kd", "cifar10-resnet8-kd-smoke", "smoke"} <= set(list_recipes())


@pytest.mark.parametrize("name", list(list_recipes()))
def test_resolved_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    """What is written into a run folder is the same recipe again, with the same digest."""
    recipe = load_recipe(name)
    again = load_recipe(write(tmp_path, "anything", recipe.to_yaml()))
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_base_is_merged_key_by_key(tmp_path: Path) -> None:
    """A recipe inherits what it does not state; mappings merge, lists replace, name and description are its own."""
    write(
        tmp_path,
        "parent",
        MINIMAL
        + "description: parent\ntrain: {epochs: 7, lr: 0.5, schedule: step, milestones: [1, 2]}\nname: parent-name\n",
    )
    child = write(tmp_path, "child", "base: parent.yaml\ntrain: {lr: 0.25, milestones: [3]}\n")
    recipe = load_recipe(child)
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.milestones) == (7, 0.25, [3])
    assert (recipe.name, recipe.description) == ("child", "")


def test_base_chain_goes_through_package_recipes(tmp_path: Path) -> None:
    """A base may be a recipe of the package that has a base itself."""
    child = write(tmp_path, "mine", "base: smoke\ntrain: {epochs: 2}\n")
    recipe = load_recipe(child)
    assert recipe.train.epochs == 2
    assert recipe.data.subset == load_recipe("smoke").data.subset
    assert recipe.data.augment == load_recipe("mnist5k-kd").data.augment


def test_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    """A recipe that is its own base, over a detour, is an error that shows the way round."""
    write(tmp_path, "a", "base: b.yaml\n")
    write(tmp_path, "b", "base: a.yaml\n")
    with pytest.raises(ConfigError, match="a -> b -> a"):
        load_recipe(tmp_path / "a.yaml")


def test_null_takes_an_inherited_section_away(tmp_path: Path) -> None:
    """`teacher: null` trains without the base's teacher."""
    child = write(tmp_path, "plain", "base: smoke\nteacher: null\ndistill: []\ntrain: {label_weight: 1.0}\n")
    assert load_recipe(child).teacher is None


def test_overrides_reach_every_depth() -> None:
    """Dotted keys set scalars, list items by index, arguments, and whole sections given as YAML."""
    recipe = load_recipe(
        "smoke",
        [
            "train.epochs=3",
            "train.lr=1e-3",
            "distill.0.weight=0.5",
            "distill.0.args.temperature=2",
            "student.args.width=0.75",
            "data.augment={flip: true}",
        ],
    )
    assert recipe.train.epochs == 3
    assert recipe.train.lr == 1e-3
    assert recipe.distill[0].weight == 0.5
    assert recipe.distill[0].args["temperature"] == 2
    assert recipe.student.args["width"] == 0.75
    assert recipe.data.augment.flip
    assert recipe.data.augment.rotate_deg == 0


def test_exponent_without_point_is_a_number(tmp_path: Path) -> None:
    """`1e-4` in YAML is a float also inside free-form arguments, where no schema would convert a string."""
    path = write(tmp_path, "r", "data: {name: mnist5k}\nstudent: {model: resnet8, args: {width: 5e-1}}\n")
    assert load_recipe(path).student.args["width"] == 0.5


def test_all_faults_are_reported_together() -> None:
    """Unknown keys, bad values, unknown names and contradictions come in one error, before any work."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(
            "smoke",
            [
                "train.epoch=3",
                "train.lr=-1",
                "train.warmup_epochs=9",
                "data.name=cifar11",
                "student.model=resnet9",
                "distill.0.method=kdd",
                "nonsense",
            ],
        )
    message = caught.value.message
    assert "7 faults" in message
    for text in (
        "train.epoch: unknown key. Did you mean 'epochs'?",
        "train.lr:",
        "train.warmup_epochs: 9 is not below epochs (1)",
        "'cifar11'. Did you mean 'cifar10'?",
        "'resnet9'. Did you mean 'resnet8'?",
        "'kdd'. Did you mean 'kd'?",
        "-s nonsense",
    ):
        assert text in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["student.model=resnet18", "student.args={}"], "is a teacher"),
        (["student.args.widht=2"], "Did you mean 'width'?"),
        (["distill.0.args.temprature=2"], "Did you mean 'temperature'?"),
        (["teacher=null"], "needs a teacher"),
        (["teacher.train=null"], "give `weights`"),
        (["teacher.mean=[0.5]"], "go together"),
        (["train.label_weight=0", "distill=[]"], "nothing to learn from"),
        (["train.schedule=step"], "needs at least one epoch"),
        (["train.milestones=[1]"], "only schedule 'step'"),
        (["data.resolution=64"], "fixed resolution"),
        (["distill.7.weight=1"], "not an index of a list of 1"),
        (["train.epochs.x=1"], "has no keys below it"),
        (["data.mean_level=300"], "data.mean_level"),
        (["name=../evil"], "name"),
    ],
)
def test_contradictions_are_found(overrides: list[str], text: str) -> None:
    """Each of these is refused with a message that names it."""
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        load_recipe("smoke", overrides)


def test_unknown_recipe_suggests_the_nearest() -> None:
    """A mistyped name gets the nearest recipe; a missing file gets a message on files."""
    with pytest.raises(ConfigError, match="Did you mean 'mnist5k-kd'"):
        load_recipe("mnist5k-kdd")
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe("no/such/file.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("data: {name: mnist5k}\ndata: {name: cifar10}\n", "given twice"),
        ("base: [1]\n", "'base' must be"),
        ("base: no-such-recipe\n", "there is no recipe"),
        ("student: {model: resnet8}\n", "data: is missing"),
    ],
)
def test_broken_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    """Broken YAML, a list, an empty file, doubled keys, bad bases and missing sections all say what is wrong."""
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, "broken", text))


def test_binary_file_is_refused(tmp_path: Path) -> None:
    """A file that is no text is a configuration error and not a traceback."""
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(ConfigError):
        load_recipe(path)


def test_digest_depends_on_the_training_and_not_on_words(tmp_path: Path) -> None:
    """Name, description and export settings leave a trained student valid; any training value does not."""
    base = load_recipe("smoke")
    words = load_recipe("smoke", ["name=other", "description=other", "export.calibration_images=7"])
    assert words.digest() == base.digest()
    for override in ("train.seed=1", "data.subset=100", "distill.0.weight=0.8", "student.args.width=1"):
        assert load_recipe("smoke", [override]).digest() != base.digest()


def test_recipes_are_frozen() -> None:
    """A loaded recipe cannot be changed behind the manifest's back."""
    recipe = load_recipe("smoke")
    with pytest.raises(Exception, match="frozen"):
        recipe.train.epochs = 3  # type: ignore[misc]


def test_config_does_not_import_torch() -> None:
    """Recipes, registries and data sets can be listed on a machine without torch."""
    code = (
        "import sys; import tinykd.config, tinykd.data, tinykd.models, tinykd.distill, tinykd.train;"
        "tinykd.config.load_recipe('smoke'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_schema_describes_every_field_that_is_not_self_evident() -> None:
    """Fields with a unit or a special zero say so in the schema, from which the reference page is made."""
    described = Recipe.model_json_schema()["$defs"]["AugmentConfig"]["properties"]
    assert all("description" in field for field in described.values())
