"""Recipes: one experiment as YAML that states only what differs from the defaults, checked whole before any work.

A recipe may name a `base` recipe; mappings are merged key by key, lists and scalars replace what the base had.
Dotted overrides (`train.epochs=3`, `distill.0.weight=0.5`) are applied last. This module never imports torch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinykd.errors import ConfigError, nearest
from tinykd.recipe_checks import complete_student, cross_check

RECIPES = Path(__file__).resolve().parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AugmentConfig(_Section):
    """Random changes of the training images, drawn anew for every image and step; 0 turns each one off."""

    crop_padding: int = Field(0, ge=0, description="pixels of zero padding before a random crop to the same size")
    resized_crop: float = Field(
        0.0, ge=0, le=1, description="least share of the area of a random crop that is enlarged to the full size"
    )
    resized_crop_ratio: float = Field(4 / 3, ge=1, description="width to height of that crop lies in [1 / r, r]")
    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    autoaugment: Literal["cifar10", "svhn", "imagenet", "random"] | None = Field(
        None, description="policy of AutoAugment, or random operations as its baseline"
    )
    rotate_deg: float = Field(0.0, ge=0, le=180, description="largest rotation to either side, degrees")
    translate: float = Field(0.0, ge=0, lt=1, description="largest shift as a fraction of the side")
    scale: float = Field(0.0, ge=0, lt=1, description="zoom by a factor in [1 - scale, 1 + scale]")
    shear_deg: float = Field(0.0, ge=0, lt=90, description="largest horizontal shear, degrees")
    brightness: float = Field(0.0, ge=0, lt=1, description="levels times a factor in [1 - b, 1 + b]")
    saturation: float = Field(0.0, ge=0, le=1, description="distance from grey times a factor in [1 - s, 1 + s]")
    cutout: int = Field(0, ge=0, description="side of the square set to mean_level, pixels; clipped at the border")
    mixup: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha), the share of each of two mixed images")


class DataConfig(_Section):
    """Which images, and how the student sees them: `x = (pixel - mean_level) / std_level`, same for every channel."""

    name: str
    root: str | None = Field(None, description="folder with the files; None looks in TINYKD_DATA, then downloads")
    resolution: int | None = Field(None, ge=8, le=512, description="side in pixels; only `folder` can change it")
    mean_level: int | None = Field(None, ge=0, le=255, description="None takes the data set's own")
    std_level: float | None = Field(None, gt=0, description="None takes the data set's own")
    val_size: int | None = Field(None, ge=0, description="images taken from train for validation; None: the default")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="`folder` without test/: share kept for test")
    subset: int | None = Field(None, ge=1, description="train on only this many images, drawn class by class")
    test_subset: int | None = Field(None, ge=1, description="test on only this many images, drawn class by class")
    seed: int = Field(0, ge=0, description="seed of the splits and of the subsets")
    augment: AugmentConfig = AugmentConfig()


class TrainConfig(_Section):
    """How one model is trained."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(True, description="sgd only")
    weight_decay: float = Field(5e-4, ge=0, description="not applied to biases and normalisation")
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from warmup_start * lr")
    warmup_start: float = Field(0.1, gt=0, le=1, description="share of lr at the first step of the warm-up")
    milestones: list[int] = Field([], description="`step` only: epochs at which lr is multiplied by gamma")
    gamma: float = Field(0.1, gt=0, le=1, description="`step` only")
    label_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy with the labels")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    temperature: float = Field(
        1.0, gt=0, description="the label loss sees logits / temperature (defensive distillation)"
    )
    ema: float = Field(0.0, ge=0, lt=1, description="decay per step of the averaged weights; 0 is off")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0 is off")
    amp: bool | None = Field(
        None, description="mixed precision; None: on a GPU only; true: on CPUs with bfloat16 instructions, too"
    )
    eval_every: int = Field(1, ge=1, description="epochs between validations")
    seed: int = Field(0, ge=0)


class ModelConfig(_Section):
    """A model of the registry and its arguments."""

    model: str
    args: dict[str, Any] = {}


class TeacherConfig(ModelConfig):
    """The teacher: read from `weights` when that file is found, else trained as `train` says."""

    weights: str | None = Field(None, description="file below TINYKD_DATA or data.root, or a path")
    mean: list[float] | None = Field(None, description="per-channel mean on 0..1 of the images it was trained on")
    std: list[float] | None = Field(None, description="per-channel standard deviation on 0..1, goes with `mean`")
    train: TrainConfig | None = None


class DistillConfig(_Section):
    """One distillation loss and its weight beside `train.label_weight`."""

    method: str
    weight: float = Field(1.0, ge=0)
    weight_end: float | None = Field(
        None, ge=0, description="weight at the end of the stage, reached in a straight line"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="the weight grows from 0 in a straight line")
    args: dict[str, Any] = {}
    name: str | None = Field(None, description="what metrics and later stages call this loss; None: the method")


class StageConfig(_Section):
    """A stage before the one that `train` and `distill` describe; what is not given here is as in `train`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    epochs: int = Field(ge=1)
    lr: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    label_weight: float = Field(0.0, ge=0)
    distill: list[DistillConfig] = []
    init: bool = Field(False, description="the methods' own init losses instead of their usual ones")
    trains: Literal["student", "methods"] | list[str] = Field(
        "student", description="student (and adapters), methods (adapters alone), or the student's modules by path"
    )


class RegularizeConfig(_Section):
    """What is dropped at random inside the student while it trains; 0 turns each one off. Teachers are left alone."""

    dropout: float = Field(0.0, ge=0, lt=1, description="share of the embedding's elements in front of the classifier")
    spatial_dropout: float = Field(0.0, ge=0, lt=1, description="share of whole channels at `taps`")
    dropblock: float = Field(
        0.0, ge=0, lt=1, description="share of each map at `taps`, reached from 0 in a straight line over each stage"
    )
    block_size: int = Field(7, ge=1, description="`dropblock` only: side of the blocks, pixels")
    taps: list[str] | None = Field(None, description="module paths or names; None: the ends of the last two stages")


class NetAugConfig(_Section):
    """Network augmentation: the student is trained inside of wider networks that share its weights."""

    width: list[float] | None = Field(
        None, description="factors of widths, drawn anew each step; None: those released for the student's family"
    )
    expand: list[float] = Field([1.0, 1.6, 2.2, 2.8], description="the same for the inner channels of blocks")
    alpha: float = Field(1.0, ge=0, description="weight of the wider network's loss; 0 is plain training")
    stop_width_epochs: int | None = Field(
        None, ge=0, description="in so many last epochs widths are the student's; None: half of those after the warm-up"
    )
    stop_expand_epochs: int = Field(0, ge=0, description="in so many last epochs inner channels are the student's")
    stop_epochs: int = Field(0, ge=0, description="so many last epochs are plain training")
    sort: bool = Field(True, description="give the student the most important inner channels at each epoch's start")
    init: Literal["student", "uniform"] = Field(
        "student", description="the student starts with its own weights, or with new ones like the wider network's"
    )
    calibration_images: int = Field(
        16000, ge=2, description="training images that batch norm statistics are taken from before each evaluation"
    )


class QatConfig(_Section):
    """Training with rounding to int8 in the loop, after the float student is done; the other settings are `train`'s."""

    epochs: int = Field(5, ge=1)
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd with `train`'s momentum")
    lr: float = Field(3e-4, gt=0, description="at the start; a cosine takes it to 0")
    weight_decay: float = Field(0.0, ge=0, description="not applied to biases")
    batch_size: int | None = Field(None, ge=1, description="None: as in `train`")
    teacher: Literal["self", "teacher"] = Field("self", description="the float student, or the recipe's teacher")
    temperature: float = Field(4.0, gt=0, description="of the divergence from the teacher")
    weight: float = Field(1.0, ge=0, description="weight of that divergence; 0 learns from the labels alone")
    label_weight: float = Field(0.0, ge=0, description="weight of the cross-entropy with the labels")
    range_momentum: float = Field(0.99, ge=0, lt=1, description="what each step keeps of the ranges of activations")
    freeze_after: float = Field(0.5, ge=0, le=1, description="share of the steps after which ranges stay as they are")


class ExportConfig(_Section):
    """How the trained student is quantised, unless `qat` has decided it."""

    calibration_images: int = Field(500, ge=1, description="images from the train split")
    calibration_seed: int = Field(0, ge=0)
    method: Literal["minmax", "percentile", "mse", "entropy"] = Field(
        "mse", description="how the ranges of activations are found"
    )
    bias_correction: bool = Field(True, description="take mean errors out of the biases, where that helps")
    equalize: bool = Field(False, description="even out channels between layers first")
    search: bool = Field(
        False, description="give each activation the method that is best for the outputs, and equalise where that helps"
    )


class FirmwareConfig(_Section):
    """How the engine's C is made; trained weights and the exported model do not depend on it."""

    optimize_for: Literal["speed", "balanced", "size"] = Field(
        "balanced", description="what a choice between kernels of equal results goes by"
    )


class Recipe(_Section):
    """One experiment, complete and checked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    data: DataConfig
    student: ModelConfig
    teacher: TeacherConfig | None = None
    distill: list[DistillConfig] = []
    stages: list[StageConfig] = []
    train: TrainConfig = TrainConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    netaug: NetAugConfig | None = None
    qat: QatConfig | None = None
    export: ExportConfig = ExportConfig()
    firmware: FirmwareConfig = FirmwareConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return the whole recipe, defaults included, as JSON-able values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML that `load_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=100)

    def training_facts(self) -> dict[str, Any]:
        """Return what decides the training result; with `qat`, its first ranges come from images of `export`."""
        everything = self.to_dict()
        facts = {key: everything[key] for key in _TRAINING_SECTIONS}
        if self.qat:
            facts["qat"] = everything["qat"]
            facts["export"] = {key: everything["export"][key] for key in ("calibration_images", "calibration_seed")}
        return facts

    def digest(self) -> str:
        """Return the SHA-256 (64 hex digits) of what decides the training result; name and description do not."""
        return hashlib.sha256(json.dumps(self.training_facts(), sort_keys=True).encode()).hexdigest()


_TRAINING_SECTIONS = ("data", "student", "teacher", "distill", "stages", "train", "regularize", "netaug")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error: otherwise the second one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes `1e-3` for a string; YAML 1.2 and every user take it for a number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def list_recipes() -> dict[str, Path]:
    """Return the recipes of the package: name -> file, sorted by name."""
    return {path.stem: path for path in sorted(RECIPES.rglob("*.yaml"))}


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        name: a recipe of the package ("mnist5k-kd") or a path to a YAML file.
        overrides: "dotted.key=value" strings; the value is read as YAML. List items are addressed by index.

    Raises:
        ConfigError: no such recipe, or anything wrong in it; one error lists every fault.
    """
    path = _find(str(name))
    raw = _read_with_bases(path, ())
    raw.setdefault("name", path.stem)
    faults: list[str] = []
    for override in overrides:
        _apply_override(raw, override, faults)
    faults += complete_student(raw.get("student"))
    recipe, schema_faults = _validate(raw)
    faults += schema_faults
    faults += cross_check(raw, recipe)
    if faults or recipe is None:
        title = f"recipe '{name}' has {len(faults)} fault{'s' if len(faults) != 1 else ''}:"
        raise ConfigError("\n".join([title, *(f"  {fault}" for fault in faults)]), "Nothing was started.")
    return recipe


def _validate(raw: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """Return the recipe and the faults of single fields.

    With faults, the recipe is what is left without the faulty fields, so that the checks that need several fields can
    still find theirs; it is None when not even that stands.
    """
    try:
        return Recipe.model_validate(raw), []
    except ValidationError as error:
        items = error.errors()
    faults = [_explain(item) for item in items]
    rest = copy.deepcopy(raw)
    for item in items:
        place: Any = rest
        for part in item["loc"][:-1]:
            place = place[part] if _has(place, part) else None
        if isinstance(place, dict):
            place.pop(item["loc"][-1], None)
    try:
        return Recipe.model_validate(rest), faults
    except ValidationError:
        return None, faults


def _has(place: Any, part: int | str) -> bool:
    if isinstance(place, dict):
        return part in place
    return isinstance(place, list) and isinstance(part, int) and part < len(place)


def _find(name: str) -> Path:
    recipes = list_recipes()
    if name in recipes:
        return recipes[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"recipe file '{name}' does not exist", "Give a file, or a name of `tinykd list recipes`.")
    raise ConfigError(
        f"there is no recipe '{name}'.{nearest(name, recipes)}",
        f"Recipes: {', '.join(recipes)}. Or give the path of a YAML file.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        # S506 does not apply: _StrictLoader is a SafeLoader.
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {path} must be a mapping with the keys {', '.join(Recipe.model_fields)}")
    return {str(key): value for key, value in raw.items()}


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(item.stem for item in (*seen, path))
        raise ConfigError(f"recipe {path.stem} is its own base: {chain}")
    raw = _read(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"recipe {path}: 'base' must be the name or the path of one recipe, not {base!r}")
    beside = path.parent / base
    parent = _read_with_bases(beside if beside.is_file() else _find(base), (*seen, path))
    for key in ("name", "description"):
        parent.pop(key, None)
    return _merge(parent, raw)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(raw: dict[str, Any], override: str, faults: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        faults.append(f"-s {override}: expected key=value, for example -s train.epochs=3")
        return
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        faults.append(f"-s {override}: the value is not valid YAML: {str(error).splitlines()[0]}")
        return
    place: Any = raw
    *parents, last = key.strip().split(".")
    for depth, part in enumerate([*parents, last]):
        is_last = depth == len(parents)
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                faults.append(f"-s {override}: '{part}' is not an index of a list of {len(place)}")
                return
            index: Any = int(part)
        elif isinstance(place, dict):
            index = part
        else:
            faults.append(f"-s {override}: '{'.'.join([*parents, last][:depth])}' has no keys below it")
            return
        if is_last:
            place[index] = value
        else:
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}
            place = place[index]


def _section_at(location: tuple[Any, ...]) -> type[BaseModel]:
    """Return the section that holds the last part of a pydantic error location."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int) or part not in section.model_fields:
            continue
        section = _find_model(section.model_fields[part].annotation) or section
    return section


def _find_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        if (found := _find_model(argument)) is not None:
            return found
    return None


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _section_at(item["loc"]).model_fields
        return f"{where}: unknown key.{nearest(str(item['loc'][-1]), known)} Known: {', '.join(known)}"
    if item["type"] == "missing":
        return f"{where}: is missing"
    given = "" if isinstance(item["input"], dict | list) else f" (given {item['input']!r})"
    message = str(item["msg"])
    return f"{where}: {message[:1].lower()}{message[1:]}{given}"
