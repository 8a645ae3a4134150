"""Recipes: how to train, as TOML. They travel in the wheel; in a source tree they lie beside the package."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from damcli import config
from damcli.config import Layer, Strict, merge, read_toml
from damcli.errors import UsageError

LossName = Literal["aucm", "aucs", "ce", "focal"]
FILE = "recipe.toml"  # of a recipe's folder; its other .toml files are forms of it


class Augmentation(Strict):
    """Random changes to every image, uniform in ± each value; 0 everywhere switches them off."""

    rotate: float = Field(default=15.0, ge=0, le=180, description="degrees")
    translate: float = Field(default=0.05, ge=0, le=0.5, description="share of the image's side")
    scale: float = Field(default=0.05, ge=0, lt=1, description="share of the image's size")
    shear: float = Field(default=0.0, ge=0, le=45, description="degrees")
    flip: bool = Field(default=False, description="left-right flips; never for chest X-rays")
    flip_vertical: bool = Field(default=False, description="upside-down flips, for images without an up")
    holes: int = Field(default=0, ge=0, le=64, description="coarse dropout: squares that are blacked out")
    hole: float = Field(default=0.1, gt=0, lt=1, description="a hole's side, share of the image's")
    brightness: float = Field(default=0.0, ge=0, lt=1, description="share of full white")
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, lt=1, description="colour images only")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="share of the colour circle; colour images only")


class Stage(Strict):
    """One training stage: a loss, its optimizer and its schedule (ALGORITHM sections 2, 3, 5, 6)."""

    loss: LossName = "ce"
    optimizer: Literal["adam", "sgd", "pesg"] = "adam"
    epochs: int = Field(default=2, ge=0)
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    findings: tuple[str, ...] = Field(default=(), description="the ones this stage trains; empty: the dataset's")
    divide_lr_by: float = Field(default=10.0, ge=1)
    decay_epochs: tuple[int, ...] = ()
    decay_steps: tuple[int, ...] = ()
    cycle_epochs: float | None = Field(default=None, gt=0, description="cyclic learning rate: epochs up and down again")
    max_lr: float | None = Field(default=None, gt=0, description="the top of the cycle, which starts at lr")
    margin: float = Field(default=1.0, gt=0, description="AUC-M's m")
    form: Literal["conditional", "prior"] = "conditional"
    score: Literal["sigmoid", "bsn", "identity"] = "sigmoid"
    gamma: float = Field(default=0.002, ge=0, description="PESG's proximal pull γ (1/500)")
    update: Literal["plain", "adam", "libauc"] = Field(default="plain", description="PESG's step; plain in the paper")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the gradient; unset: no limit")
    nonnegative: bool = Field(default=True, description="AUC-M's α stays ≥ 0; false for ablations only")
    ab_start: float = Field(default=0.0, ge=0, le=1, description="where AUC-M's a and b start; 0 in the paper")
    focal_alpha: float = Field(default=0.25, gt=0, lt=1)
    focal_gamma: float = Field(default=2.0, ge=0)
    sampler: Literal["uniform", "balanced"] = "uniform"
    positives: float = Field(default=0.5, gt=0, lt=1, description="share of positives in a balanced batch")

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if self.optimizer == "pesg" and self.loss not in ("aucm", "aucs"):
            raise ValueError(f"PESG optimises the AUC losses, not {self.loss}: take adam or sgd")
        if self.optimizer != "pesg" and self.loss in ("aucm", "aucs"):
            raise ValueError(f"{self.loss} is a min-max loss: its optimizer is pesg")
        if self.optimizer == "pesg" and self.lr * self.gamma >= 1:
            raise ValueError(f"lr·gamma = {self.lr * self.gamma:g} must stay below 1 (gamma multiplies, like 0.002)")
        step = self.update if self.optimizer == "pesg" else self.optimizer
        if self.momentum and step == "adam":
            raise ValueError("momentum is not for Adam, which has its own: take sgd, or another update of pesg")
        if self.clip_norm is not None and self.optimizer != "pesg":
            raise ValueError(f"clip_norm is PESG's: {self.optimizer} does not limit the gradient's norm")
        if (self.cycle_epochs is None) != (self.max_lr is None):
            raise ValueError("a cyclic learning rate needs both cycle_epochs and max_lr")
        if self.max_lr is not None and self.max_lr <= self.lr:
            raise ValueError(
                f"max_lr must be above lr, where the cycle starts: {self.max_lr:g} is not above {self.lr:g}"
            )
        if self.cycle_epochs is not None and self.optimizer == "pesg":
            raise ValueError("a cyclic learning rate is not for pesg, whose stages end where the rate is divided")
        if self.cycle_epochs is not None and (self.decay_epochs or self.decay_steps):
            raise ValueError("a learning rate is cyclic or divided, not both: drop decay_epochs and decay_steps")
        if self.clip_norm is not None and step == "libauc":
            raise ValueError("clip_norm is not for update = libauc, which clamps every element of the gradient")
        return self


class Metadata(Strict):
    """A two-layer network on columns of the manifest, trained on its own and mixed in (ALGORITHM section 8)."""

    columns: tuple[str, ...] = Field(default=(), description="of the manifest, such as age and sex; empty: no network")
    weight: float = Field(default=0.5, gt=0, lt=1, description="of its score in the mixture with the image's")
    allow_leaks: bool = Field(default=False, description="also columns that tell of the label, not of the patient")


class Ensemble(Strict):
    """Members that a recipe trains in turn, each a run of its own."""

    backbones: tuple[str, ...] = Field(default=(), description="a member for each; empty: the recipe's own backbone")
    seeds: tuple[int, ...] = Field(default=(), description="a member for each; empty: the recipe's own seed")
    per_finding: bool = Field(default=False, description="one stage 1 for all findings, then a stage 2 for each")


class Recipe(Strict):
    """Everything that decides a training run, dataset aside."""

    description: str = ""
    backbone: str = "tf_efficientnet_lite0"
    in_chans: Literal[1, 3] = Field(default=3, description="of the network's first layer; grey scans fill all of them")
    activation: str | None = Field(default=None, description="in place of the backbone's own, such as elu")
    weights: str | None = Field(default=None, description="a file of timm weights; the classifier's are ignored")
    pretrained: bool = Field(default=False, description="download timm's weights")
    batch_size: int = Field(default=32, ge=2)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "32", "bf16", "fp16"] = "auto"
    tune_fraction: float = Field(default=0.15, gt=0, lt=0.5, description="patients of train kept for selection")
    accumulate: int = Field(default=1, ge=1, description="pieces a batch is computed in; the same loss, less memory")
    compile: bool = Field(default=False, description="torch.compile: minutes at the start, for long runs on a GPU")
    monitor: str = Field(default="mean", description="the tune AUROC that chooses the epoch: mean, or a finding")
    patience: int | None = Field(default=None, ge=1, description="epochs of the last stage without a better one")
    checkpoint_every: str = Field(default="10 min", description="time or steps: 30 s, 10 min, 2 h, 500 steps")
    augment: Augmentation = Augmentation()
    metadata: Metadata = Metadata()
    ensemble: Ensemble = Ensemble()
    stage1: Stage = Stage(epochs=0)
    stage2: Stage = Stage(loss="aucm", optimizer="pesg", lr=0.1, sampler="balanced")

    @field_validator("checkpoint_every")
    @classmethod
    def _is_an_interval(cls, text: str) -> str:
        config.interval(text)
        return text

    def stages(self) -> list[tuple[int, Stage]]:
        """Return the stages that have epochs, with their numbers. Raises `UsageError` where none has.

        >>> [(number, stage.loss) for number, stage in Recipe().stages()]
        [(2, 'aucm')]
        """
        found = [(number, stage) for number, stage in ((1, self.stage1), (2, self.stage2)) if stage.epochs]
        if not found:
            raise UsageError("there is nothing to train: both stages have 0 epochs", fix="--set stage2.epochs=2")
        return found


def folders() -> list[Path]:
    """Return where recipes lie: inside an installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    return [folder for folder in (package / "models", package.parent / "models") if folder.is_dir()]


def names() -> list[str]:
    """Return the names of the recipes at hand, sorted: each is a folder with a recipe.toml.

    >>> "chexpert-small" in names()
    True
    """
    return sorted({file.parent.name for folder in folders() for file in folder.glob(f"*/{FILE}")})


def forms(name: str) -> list[str]:
    """Return the names of a recipe's other forms, sorted: the files beside its recipe.toml.

    >>> forms("melanoma")
    ['melanoma/ce', 'melanoma/ci', 'melanoma/focal', 'melanoma/metadata']
    """
    return sorted(called(file) for file in find(name).parent.glob("*.toml") if file.name != FILE)


def called(file: Path) -> str:
    """Return what the recipe in a file is called: after its folder, after folder and form, or after the file itself.

    >>> called(find("melanoma")), called(find("melanoma/ci")), called(Path("elsewhere/mine.toml"))
    ('melanoma', 'melanoma/ci', 'mine')
    """
    folder = file.absolute().parent
    if file.name == FILE:
        return folder.name
    return f"{folder.name}/{file.stem}" if (folder / FILE).is_file() else file.stem


def find(name: str, beside: Path | None = None) -> Path:
    """Return the file of a recipe: by name (chexpert), name and form (chexpert/ci), .toml file, or folder.

    A folder is one with a recipe.toml. What lies in the folder `beside` comes first. Raises `UsageError` with the
    nearest of the known names.
    """
    is_file = name.endswith(".toml")
    places = [*([beside] if beside else []), *([] if is_file else folders()), Path()]
    for path in (place / name for place in places):
        for file in (path,) if is_file else (path / FILE, Path(f"{path}.toml")):
            if file.is_file():
                return file
    if is_file:
        raise UsageError("there is no such recipe file", where=name)
    known = names()
    near = difflib.get_close_matches(name, [*known, *(form for one in known for form in forms(one))], n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"there is no recipe {name!r}",
        fix=f"{guess}choose one of: {', '.join(known)}; or give a .toml file, or a folder with a {FILE}",
    )


def label(name: str) -> str:
    """Return what a recipe is called in the name of a folder or file, `NAME` or `NAME-FORM`.

    >>> label("demo/ci")
    'demo-ci'
    """
    return called(find(name)).replace("/", "-")


def load(name: str) -> Layer:
    """Read a recipe, what it `extends` underneath, as the lowest layer of settings."""
    file = find(name)
    return Layer(f"recipe {called(file)}", _read(file, seen=()))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UsageError(f"recipes extend one another in a circle: {' → '.join(called(p) for p in (*seen, path))}")
    values = read_toml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UsageError(f"extends takes the name of a recipe, got {base!r}", where=path)
    return merge(_read(find(base, path.parent), (*seen, path)), values)
