"""DICOM: from a file to the pixels that are shown and learned from."""

from __future__ import annotations

from damcli.errors import DataError

# The largest image that is read, whatever its format: the largest detectors and film scanners stay below 60
# megapixels, while a file of a few bytes can claim 65535 x 65535.
PIXEL_LIMIT = 2**27


class NotAnImage(DataError):  # noqa: N818
    """A file that is no image by its content, so that a folder scan may pass over it."""
