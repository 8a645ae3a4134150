"""What a model says of itself: the JSON in its metadata, and the names that its graph and its table are bound to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

from pydantic import Field

from damcli.config import Strict
from damcli.data.images import Contract
from damcli.data.metadata import Encoding
from damcli.metrics.decisions import Decisions
from damcli.metrics.drift import Reference

SCHEMA_VERSION = 2
# Version 1 lacks fields that have a default here.
READABLE_VERSIONS = (1, 2)
INPUT, METADATA, OUTPUT, CAMS = "images", "metadata", "scores", "cams"
Precision = Literal["fp32", "fp16"]


class MemberMetadata(Strict):
    """A member's network on metadata: what it takes, and the weight of its score beside that of the images'."""

    encoding: Encoding
    weight: float = Field(gt=0, lt=1)


class MemberInfo(Strict):
    """Where one member of the ensemble comes from."""

    run: str
    recipe: str
    backbone: str
    loss: str
    seed: int
    dataset: str = Field(description="the fingerprint of the dataset it was trained on")
    fold: int | None = Field(default=None, description="of the dataset's folds, the one that was held out")
    weights_sha256: str
    started_from: str | None = Field(default=None, description="SHA-256 of the weights that training began with")
    findings: tuple[str, ...]
    size: int
    metadata: MemberMetadata | None = None
    views: int = Field(default=1, description="of a scan, its score being their mean: test-time augmentation")
    weights: dict[str, float] = Field(default={}, description="by finding, in the mean over the members; 1 where none")


class OpenVINOParity(Strict):
    """How far OpenVINO's scores, in `precision`, are from ONNX Runtime's on the same scans; measured at export."""

    version: str = Field(description="of the package openvino")
    precision: str
    max_difference: float
    auroc_difference: float | None = Field(description="largest over the findings; None where no AUROC is defined")


class Parity(Strict):
    """How far ONNX Runtime's scores are from PyTorch's (fp32), measured on `scans` real scans at export."""

    scans: int
    max_difference: float
    tolerance: float | None = Field(description="of a score; None for fp16, which is judged by its AUROC")
    auroc_difference: float | None = Field(description="largest over the findings; None where no AUROC is defined")
    forced: str = Field(default="", description="what --force let pass, in words")
    openvino: OpenVINOParity | None = None
    openvino_note: str = Field(default="", description="why OpenVINO was not measured at export, in words")


class External(Strict):
    """The weights of a model that is too large for one file: a second one, in the same folder."""

    file: str = Field(description="its name, without a folder")
    sha256: str
    bytes: int


class Cams(Strict):
    """The size of the class activation maps that a model gives beside its scores."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)


class ModelInfo(Strict):
    """What a model says of itself."""

    schema_version: int = SCHEMA_VERSION
    damcli: str = Field(description="the version that made it")
    created: str = Field(description="ISO 8601, UTC")
    findings: tuple[str, ...]
    contract: Contract
    members: tuple[MemberInfo, ...]
    parity: Parity
    precision: Precision = Field(default="fp32", description="of the networks' arithmetic")
    licence: str = Field(default="", description="the terms of its use, as the exporter states them")
    intended_use: str = Field(default="", description="as the exporter states it")
    external: External | None = Field(default=None, description="where the weights are, if not in the model's own file")
    cams: Cams | None = None
    decisions: Decisions | None = Field(
        default=None, description="the calibration that is in the graph, and thresholds of what comes out of it"
    )
    reference: Reference | None = Field(
        default=None, description="what the scans it was made on, and its scores of them, are like"
    )

    @property
    def encoding(self) -> Encoding | None:
        """What the input `metadata` holds: the members' encodings side by side; None where no member has one."""
        return side_by_side([member.metadata.encoding for member in self.members if member.metadata])


def side_by_side(encodings: Sequence[Encoding]) -> Encoding | None:
    """Return the encoding of all columns of several, one behind the other; None for none."""
    columns = tuple(chain.from_iterable(encoding.columns for encoding in encodings))
    return Encoding(columns=columns) if columns else None
