"""What runs a model's graph, and what it says when that fails. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from damcli.errors import MachineError

if TYPE_CHECKING:
    import onnxruntime

# What memory that is not there reads like: in ONNX Runtime (its arena, CUDA, cuBLAS, cuDNN), TensorRT, OpenVINO, C++.
_NO_MEMORY = re.compile(
    r"out of memory|out_?of_?memory|cudaErrorMemoryAllocation|alloc(ation)?_failed|bad[_ ]alloc"
    r"|failed to allocate|can('|no)t allocate|could not allocate|smaller than requested bytes",
    re.IGNORECASE,
)

_LONGEST = 500  # letters of what an engine says


class OutOfMemory(MachineError):  # noqa: N818 - what happened, by the name it has everywhere
    """A batch did not fit into memory; a smaller one may."""


class Engine(Protocol):
    """Something that runs a model's graph. Safe to call from several threads at once."""

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs of these names. Raises `OutOfMemory`, or `MachineError` for what else fails."""
        ...


class Started(NamedTuple):
    """Engines, one per GPU (else one), what they run on, that and why in words, and whether more was asked for."""

    engines: tuple[Engine, ...]
    provider: str
    note: str
    fell_back: bool


class OnnxRuntime:
    """An `Engine`: a session of ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        # Plain memory is bound, and copied by the run itself: a batch of images is a few MB, which should be little
        # beside its convolutions (by estimate; not measured on a GPU).
        binding = self.session.io_binding()
        with failures():
            for name, values in inputs.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
            for name in outputs:
                binding.bind_output(name, "cpu")
            self.session.run_with_iobinding(binding)
            return [np.asarray(values) for values in binding.copy_outputs_to_cpu()]


@contextmanager
def failures() -> Iterator[None]:
    """Turn what fails in an engine into `OutOfMemory`, or into a `MachineError` with the reason."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise OutOfMemory(f"a batch does not fit into memory: {reason}", fix="choose a smaller --batch") from error
        raise MachineError(f"the model could not be run: {reason}", fix="try --device cpu") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing.

    It may quote a name out of the model, which must not get at the terminal.

    >>> first_line(ValueError("no node 'a\\x1b[31m' …\\nmore"))
    "no node 'a\\\\x1b[31m' …"
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:_LONGEST])
