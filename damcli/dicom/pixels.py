"""From a DICOM file to what is shown: read it, choose the decoder, apply the grey scale pipeline."""

from __future__ import annotations

import importlib.util
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from damcli.dicom import PIXEL_LIMIT, NotAnImage, streams
from damcli.dicom.display import colour, element, grey, number, of_frame
from damcli.errors import DataError

# Transfer syntax → decoders: the first one that is installed and succeeds counts. simplejpeg, and imagecodecs of the
# extra `codecs`, are called here, all others are pydicom's plugins. imagecodecs stands where it is clearly faster, or
# alone in reading 12 bits without being GPL-licensed; with JPEG-LS and JPEG 2000 it is as fast as the others. gdcm
# stands only where nothing else in the base install will do: it cannot decode 12-bit JPEG Extended, it is no faster
# with JPEG 2000, and many a damaged stream makes it end the whole process.
DECODERS: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2": ("pydicom",),  # Implicit VR Little Endian
    "1.2.840.10008.1.2.1": ("pydicom",),  # Explicit VR Little Endian
    "1.2.840.10008.1.2.1.99": ("pydicom",),  # Deflated
    "1.2.840.10008.1.2.2": ("pydicom",),  # Explicit VR Big Endian
    "1.2.840.10008.1.2.5": ("pylibjpeg",),  # RLE
    "1.2.840.10008.1.2.4.50": ("simplejpeg", "pillow"),  # JPEG Baseline
    "1.2.840.10008.1.2.4.51": ("simplejpeg", "imagecodecs", "pylibjpeg"),  # JPEG Extended
    "1.2.840.10008.1.2.4.57": ("imagecodecs", "gdcm", "pylibjpeg"),  # JPEG Lossless
    "1.2.840.10008.1.2.4.70": ("imagecodecs", "gdcm", "pylibjpeg"),  # JPEG Lossless, selection value 1
    "1.2.840.10008.1.2.4.80": ("pyjpegls",),  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81": ("pyjpegls",),  # JPEG-LS Near-Lossless
    "1.2.840.10008.1.2.4.90": ("pylibjpeg",),  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91": ("pylibjpeg",),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": ("imagecodecs", "pylibjpeg"),  # High-Throughput JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.202": ("imagecodecs", "pylibjpeg"),  # High-Throughput JPEG 2000 Lossless RPCL
    "1.2.840.10008.1.2.4.203": ("imagecodecs", "pylibjpeg"),  # High-Throughput JPEG 2000
}
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
REQUIRED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")


def is_dicom(head: bytes) -> bool:
    """Tell by the first 132 bytes whether a file may be DICOM: the prefix of PS3.10, or a plausible first element.

    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"\\x08\\x00\\x05\\x00CS\\x0a\\x00ISO_IR 100"), is_dicom(b"Path,Sex")
    (True, True, False)
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    # Without the prefix, the first element belongs to the group 2 or 8; a zero byte in front means big endian.
    group, tag = struct.unpack(">HH" if head[0] == 0 else "<HH", head[:4])
    explicit = head[4:6] in (b"UL", b"UI", b"CS", b"OB", b"SH", b"DA")
    short = struct.unpack("<I", head[4:8])[0] <= 64
    return group in (0x0002, 0x0008) and tag <= 0x0100 and (explicit or short)


def read(source: Path | BinaryIO) -> Dataset:
    """Read a DICOM file, also one without preamble or file meta information; a file object is left open.

    Raises `NotAnImage` if it is no DICOM file by its content, `DataError` if its header is cut off or damaged.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return read(file)
    head = source.read(132)
    if not is_dicom(head):
        raise NotAnImage("not a DICOM file")
    source.seek(0)
    try:
        # Its warnings quote values, which may identify a patient.
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(source, force=head[128:132] != b"DICM")
    except Exception as error:
        raise DataError("the DICOM header is cut off or damaged") from error
    if not dataset.preamble and not {"SOPClassUID", "Rows"} & set(dataset.dir()):
        raise NotAnImage("not a DICOM file")
    return dataset


def grey16(dataset: Dataset, frame: int | None = None) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """Return the image as it is shown: grey as uint16 (H, W) over 0 … 65535, colour as uint8 (H, W, 3) RGB.

    Grey goes the way of the standard (PS3.4 N.2): modality LUT or rescale → VOI LUT or window (LINEAR, LINEAR_EXACT,
    SIGMOID) → inversion of MONOCHROME1. Of several the first counts, and a VOI LUT comes before a window. Without both
    (a window of zero width counts as none), images of up to 8 stored bits keep their full range, as viewers and JPEG
    files show them; deeper ones are spread between the 0.1st and the 99.9th percentile of the pixels that are no
    padding. Padding (PixelPaddingValue to PixelPaddingRangeLimit) is 0, the background's black, also in MONOCHROME1.
    YBR becomes RGB once, palettes are applied, overlays are not drawn.

    Raises `NotAnImage` for DICOM objects that are no image (reports, plans, directories), and `DataError` with the
    reason where an image cannot be shown: several frames and no `frame`, no or cut off pixel data, no decoder.
    """
    with warnings.catch_warnings(action="ignore"):
        _require_image(dataset)
        frames = int(number(dataset, "NumberOfFrames") or 1)
        if frame is None and frames > 1:
            raise DataError(f"the image has {frames} frames, and one is expected (damcli prepare --frame N takes one)")
        if frame is not None and frame >= frames > 1:
            raise DataError(f"the image has {frames} frames, and none has the number {frame}")
        index = frame if frame is not None and frames > 1 else 0
        stored, photometric = _decode(dataset, index)
        if photometric in GREY and stored.ndim == 2:
            return grey(of_frame(dataset, index), stored, inverted=photometric == "MONOCHROME1")
        return colour(dataset, stored, photometric)


def remark(dataset: Dataset) -> str:
    """Return what a user should know of an image that is shown all the same, "" for nothing.

    Raw detector values (Presentation Intent Type, PS3.3 C.8.11.7), text in the pixels (Burned In Annotation,
    PS3.3 C.7.6.1), several windows or VOI LUTs of which the first counts (PS3.3 C.11.2).

    >>> image = Dataset()
    >>> image.BurnedInAnnotation = "YES"
    >>> remark(image)
    'text is burned into the image'
    """
    remarks = []
    # Warnings of values that cannot be read quote them.
    with warnings.catch_warnings(action="ignore"):
        if str(element(dataset, "PresentationIntentType") or "").strip().upper() == "FOR PROCESSING":
            remarks.append("FOR PROCESSING: raw detector values, not meant to be shown")
        if str(element(dataset, "BurnedInAnnotation") or "").strip().upper() == "YES":
            remarks.append("text is burned into the image")
        luts = len(element(dataset, "VOILUTSequence") or ())
        windows = element(dataset, "WindowCenter")
        choices = luts or (len(windows) if isinstance(windows, MultiValue) else 1)
        if choices > 1:
            remarks.append(f"the first of {choices} {'VOI LUTs' if luts else 'windows'} is used")
        if not _square(dataset):
            remarks.append("its pixels are not square, and are shown as if they were")
    return "; ".join(remarks)


def _square(dataset: Dataset) -> bool:
    """Whether pixels are as high as wide, within 1 % (PS3.3 C.7.6.3.1.7, 10.7.1.3); true where nothing is said."""
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        values = element(dataset, keyword)
        if isinstance(values, MultiValue) and len(values) == 2:
            try:
                high, wide = (float(value) for value in values)
            except (TypeError, ValueError):
                continue
            if wide > 0 < high:
                return abs(high / wide - 1) <= 0.01
    return True


def supported() -> list[tuple[str, str, str | None]]:
    """Return (transfer syntax, UID, decoder that comes first or None) for each that damcli can read.

    >>> supported()[0]
    ('Implicit VR Little Endian', '1.2.840.10008.1.2', 'pydicom')
    """
    return [(UID(syntax).name, syntax, next(iter(_installed(UID(syntax))), None)) for syntax in DECODERS]


def _installed(syntax: UID) -> list[str]:
    names = DECODERS[syntax]
    if names == ("pydicom",):
        return ["pydicom"]
    plugins = get_decoder(syntax).available_plugins
    return [n for n in names if n in plugins or (n in ("simplejpeg", "imagecodecs") and importlib.util.find_spec(n))]


def _require_image(dataset: Dataset) -> None:
    if not any(keyword in dataset for keyword in PIXELS):
        meta = getattr(dataset, "file_meta", Dataset())
        kind = UID(str(element(dataset, "SOPClassUID") or element(meta, "MediaStorageSOPClassUID") or ""))
        if "Rows" not in dataset and kind.name != kind and "Image" not in kind.name:
            raise NotAnImage(f"a DICOM file without an image ({kind.name})")
        raise DataError("the DICOM file has no pixel data: it is cut off, or only its header was stored")
    if missing := [keyword for keyword in REQUIRED if element(dataset, keyword) is None]:
        raise DataError(f"the DICOM header lacks {', '.join(missing)}")
    if element(dataset, "PhotometricInterpretation") not in GREY + COLOUR:
        raise DataError(f"the photometric interpretation is none of {', '.join(GREY + COLOUR)}")
    rows, columns = (int(number(dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    if not 0 < rows * columns <= PIXEL_LIMIT:
        raise DataError(f"the header claims {columns} x {rows} pixels; up to {PIXEL_LIMIT:,} are read")
    allocated, stored = (int(number(dataset, keyword) or 0) for keyword in ("BitsAllocated", "BitsStored"))
    if "PixelData" in dataset and not 0 < stored <= allocated <= 64:
        raise DataError(f"the header claims {stored} bits stored in {allocated}")


def _transfer_syntax(dataset: Dataset) -> UID:
    syntax = element(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID")
    if syntax:
        return UID(str(syntax))
    implicit, little = dataset.original_encoding
    if getattr(dataset, "preamble", None) or implicit is None:
        raise DataError("the transfer syntax is missing: the file is broken, fetch it again")
    # A bare data set, as written before PS3.10: never compressed, and pydicom has found out its encoding.
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _decode(dataset: Dataset, frame: int) -> tuple[NDArray, str]:
    """Return the stored values (H, W) or (H, W, 3) and the photometric interpretation that they now have."""
    syntax = _transfer_syntax(dataset)
    if syntax not in DECODERS:
        raise DataError(f"the transfer syntax is not supported ({syntax.name if syntax.name != syntax else 'unknown'})")
    high, bits = number(dataset, "HighBit"), number(dataset, "BitsStored")
    whole = not syntax.is_encapsulated or syntax == RLELossless  # all allocated bits are in the file
    if whole and high is not None and bits is not None and high >= bits:
        # Of old allowed (PS3.5 8.1.1 now has it at bits - 1), and the decoder would take the lowest bits for the image.
        raise DataError(f"the header claims {bits:g} bits stored below bit {high:g}, not in the lowest ones")
    failure: BaseException | None = None
    for name in (installed := _installed(syntax)):
        try:
            if name == "simplejpeg":
                return _decode_jpeg(dataset, frame, syntax)
            if name == "imagecodecs":
                return _decode_grey(dataset, frame, syntax)
            return _decode_plugin(dataset, frame, syntax, name)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except streams.CutOff as error:  # what others fill up is no picture
            failure = error
            break
        except BaseException as error:  # a panic in a decoder written in Rust is no Exception
            failure = error
    if syntax == JPEGExtended12Bit and not {"imagecodecs", "pylibjpeg"} & {*installed} and bits != 8:
        raise DataError(
            "12-bit JPEG Extended needs the extra codecs (or the GPL-licensed gpl-codecs)",
            fix="pip install 'damcli[codecs]'",
        )
    if not installed:
        names = " or ".join(DECODERS[syntax])
        raise DataError(f"no decoder for {syntax.name} is installed ({names})", fix="pip install 'damcli[codecs]'")
    # In our words: what decoders say may quote the header.
    raise DataError(f"the pixel data is cut off or damaged ({syntax.name})") from failure


def lossless_jpeg(stream: bytes, rows: int, columns: int) -> NDArray[np.uint16]:
    """Decode a bare lossless JPEG (SOF3) of one component as the standard has it, into uint16 (rows, columns).

    Raises `DataError` if it is cut off or damaged.
    """
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    image.Rows, image.Columns, image.SamplesPerPixel, image.NumberOfFrames = rows, columns, 1, 1
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    image["PixelData"].VR = "OB"
    return np.asarray(_decode(image, 0)[0], np.uint16)


def _decode_plugin(dataset: Dataset, frame: int, syntax: UID, plugin: str) -> tuple[NDArray, str]:
    """Decode with one of pydicom's plugins."""
    if syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        _frame(dataset, frame, syntax)
    clipped = _overshoots(dataset, syntax)
    options: dict[str, Any] = {"correct_unused_bits": False} if clipped else {}
    if syntax.is_encapsulated:
        # The header's word for it means nothing there (PS3.5, 8.2), and the plugins that need another set it.
        options["planar_configuration"] = 0
    else:
        plugin = ""
    values, properties = get_decoder(syntax).as_array(dataset, index=frame, decoding_plugin=plugin, **options)
    if clipped:
        values = np.minimum(values, 2**dataset.BitsStored - 1)
    return values, str(properties["photometric_interpretation"])


def _decode_grey(dataset: Dataset, frame: int, syntax: UID) -> tuple[NDArray, str]:
    """Decode a grey image with imagecodecs, to the values that pydicom's plugins give."""
    import imagecodecs

    if dataset.SamplesPerPixel != 1:
        raise ValueError("the plugins know how to convert colours")
    data = _frame(dataset, frame, syntax)
    signed, size = dataset.PixelRepresentation == 1, dataset.BitsAllocated // 8
    if jpeg := syntax in JPEGTransferSyntaxes:
        values = streams.whole(imagecodecs.jpeg8_decode, data)
    else:
        values = streams.htj2k(data, dataset.Rows, dataset.Columns)
    if values.itemsize > size or (not jpeg and signed != (values.dtype.kind == "i")):
        raise ValueError("the stream and the header disagree")
    if _overshoots(dataset, syntax):
        values = np.minimum(values, 2**dataset.BitsStored - 1)
    values = values.astype(f"{'i' if signed else 'u'}{size}")
    if jpeg:  # which knows no sign, and may hold more than is stored (PS3.5, 8.1.1)
        unused = 8 * size - dataset.BitsStored
        values = values << unused >> unused
    return values, str(dataset.PhotometricInterpretation)


def _decode_jpeg(dataset: Dataset, frame: int, syntax: UID) -> tuple[NDArray, str]:
    """Decode 8-bit JPEG about six times faster than the plugins do, where the stream and the header agree."""
    import simplejpeg

    data = _frame(dataset, frame, syntax)
    if dataset.PixelRepresentation != 0:
        raise ValueError("the stream and the header disagree")
    space, photometric = simplejpeg.decode_jpeg_header(data)[2], str(dataset.PhotometricInterpretation)
    if space == "Gray":
        target = "GRAY"
    elif (space == "YCbCr" and photometric in ("YBR_FULL", "YBR_FULL_422")) or space == photometric == "RGB":
        target = photometric = "RGB"
    else:
        raise ValueError("the stream does not say which colours these are")
    try:
        values = simplejpeg.decode_jpeg(data, target)
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise streams.CutOff("the stream ends early") from error
        raise
    return values[..., 0] if target == "GRAY" else values, photometric


def _frame(dataset: Dataset, frame: int, syntax: UID) -> bytes:
    """Return the compressed frame. Raises `ValueError` where JPEG is not what the header says, or cut off."""
    data = get_frame(dataset.PixelData, frame, number_of_frames=int(number(dataset, "NumberOfFrames") or 1))
    if syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        streams.check_jpeg(data, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    return data


def _overshoots(dataset: Dataset, syntax: UID) -> bool:
    """Whether lossy JPEG may decode to more than the stored bits hold: white, which must not wrap around to black."""
    return syntax == JPEGExtended12Bit and dataset.PixelRepresentation == 0
