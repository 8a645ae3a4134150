"""A packaged model: open it, choose the device, score scans. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from damcli.bundle import container, openvino, providers
from damcli.bundle.engines import Engine
from damcli.bundle.providers import CPU, CUDA, TENSORRT
from damcli.bundle.schema import CAMS, INPUT, METADATA, OUTPUT, ModelInfo
from damcli.errors import MachineError

DEVICES = ("auto", "cpu", "cuda", "tensorrt", "openvino")


class Output(NamedTuple):
    """What a model gives for N scans: scores float32 (N, K) in [0, 1], and class activation maps (N, K, h, w)."""

    scores: NDArray[np.float32]
    cams: NDArray[np.float32] | None


@dataclass(frozen=True)
class Model:
    """An opened model. `provider` is what it really runs on; `provider_note` says what that is, and why.

    `fell_back` is true where less is used than was asked for, or than is there: a warning's worth. `sha256` is that of
    the file as it was opened, whatever lies there now.
    """

    info: ModelInfo
    provider: str
    provider_note: str
    fell_back: bool
    engines: tuple[Engine, ...]
    sha256: str

    @classmethod
    def open(
        cls,
        path: Path,
        device: str = "auto",
        require_gpu: bool = False,
        threads: int | None = None,
        streams: int = 1,
    ) -> Model:
        """Open and verify a model, and start it on one of `DEVICES`.

        `threads` is the number of CPU threads that one call of `run` uses (default: all), `streams` how many calls
        there are at once. Raises `UsageError` if there is no such file, `DataError` for what `container.read` refuses
        or ONNX Runtime cannot run, `MachineError` if `require_gpu` and it does not run on a GPU, or if OpenVINO is
        asked for and is not installed or gives other scores.
        """
        data, info, weights = container.read(path)
        if device == "openvino":
            started = openvino.start(path.resolve() if weights else data, info.parity, threads, streams)
        else:
            folder = weights.parent if weights else None
            started = providers.start(data, device, threads, path, folder, info.precision == "fp16")
        note = started.note
        if require_gpu and started.provider not in (CUDA, TENSORRT):
            raise MachineError(f"a GPU is required: {note}", fix="see damcli info doctor, or leave out --require-gpu")
        if started.provider == CPU and device != "cpu" and openvino.installed() and not openvino.refusal(info.parity):
            note += "; --device openvino may be faster"
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(info, started.provider, note, started.fell_back, started.engines, sha256)

    @property
    def devices(self) -> int:
        """How many devices there are to run on at once: the GPUs, or 1 for the CPU."""
        return len(self.engines)

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.provider in (CUDA, TENSORRT)

    def run(
        self,
        images: NDArray[np.uint8],
        metadata: NDArray[np.float32] | None = None,
        device: int = 0,
        cams: bool = False,
    ) -> Output:
        """Score scans: uint8 (N, size, size, channels), or (N, size, size) where channels is 1.

        `metadata` are the scans' rows by `info.encoding`, float32 (N, width), for a model that takes them; without
        them all is missing. Columns are in the order of `info.findings`. `cams` asks for the class activation maps of
        a model that has them (`info.cams`). Safe to call from several threads at once. Raises `OutOfMemory` where a
        batch does not fit, `MachineError` for what else fails on the device.
        """
        contract = self.info.contract
        shape = (contract.size, contract.size, contract.channels)
        shapes = (shape, shape[:2]) if contract.channels == 1 else (shape,)
        if images.dtype != np.uint8 or images.shape[1:] not in shapes:
            raise ValueError(f"images must be uint8 (N, {shape}), got {images.dtype} {images.shape}")
        if cams and self.info.cams is None:
            raise ValueError("this model has no class activation maps")
        inputs: dict[str, NDArray[Any]] = {INPUT: images.reshape(len(images), *shape)}
        if (rows := self._rows(len(images), metadata)) is not None:
            inputs[METADATA] = rows
        if not len(images):
            return self._nothing(cams)
        scores, *maps = self.engines[device].run(inputs, [OUTPUT, CAMS] if cams else [OUTPUT])
        return Output(scores, maps[0] if cams else None)

    def score(self, images: NDArray[np.uint8], metadata: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Score scans as `run` does, and return the scores alone, float32 (N, K)."""
        return self.run(images, metadata).scores

    def _nothing(self, cams: bool) -> Output:
        scores = np.empty((0, len(self.info.findings)), np.float32)
        size = self.info.cams
        return Output(scores, np.empty((*scores.shape, size.height, size.width), np.float32) if cams and size else None)

    def _rows(self, scans: int, metadata: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        encoding = self.info.encoding
        if encoding is None:
            if metadata is not None:
                raise ValueError("this model takes no metadata")
            return None
        if metadata is None:
            return np.repeat(encoding.nothing[None], scans, axis=0)
        if metadata.dtype != np.float32 or metadata.shape != (scans, encoding.width):
            raise ValueError(
                f"metadata must be float32 {(scans, encoding.width)}, got {metadata.dtype} {metadata.shape}"
            )
        return metadata


def read_info(path: Path) -> ModelInfo:
    """Verify a model file and return what it says of itself; raises what `Model.open` does, short of running it."""
    return container.read(path).info
