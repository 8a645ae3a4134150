"""A small image in each transfer syntax, to see what the decoders of this machine do with it.

Every image holds the same pattern, known by a formula. The compressed ones are frames that other programs made, once;
what pydicom writes by itself is written when it is asked for.
"""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from damcli.dicom import pixels
from damcli.errors import DataError

SIDE = 32


class Sample(NamedTuple):
    """An image of `bits` stored bits in a transfer syntax: its frame in base64, "" where pydicom writes it.

    A decoder may differ from the pattern by up to `within`, which is what the compression cost, and a little for
    rounding in lossy JPEG, where decoders differ.
    """

    syntax: UID
    bits: int
    frame: str = ""
    within: int = 0


def pattern(bits: int) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """Return the pixels of a sample (32, 32): squares on a slope, of more than 8 bits with a fine texture.

    >>> pattern(8)[0, :10].tolist()
    [0, 4, 8, 12, 16, 20, 24, 28, 64, 68]
    """
    y, x = np.mgrid[:SIDE, :SIDE]
    coarse = 4 * x + 3 * y + 32 * ((x // 8 + y // 8) % 2)
    return coarse.astype(np.uint8) if bits == 8 else (16 * coarse + x * y % 8).astype(np.uint16)


def file(sample: Sample, frame: bytes | None = None) -> bytes:
    """Return a sample as a DICOM file, with another frame in its place if one is given."""
    image, stored = Dataset(), pattern(sample.bits)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = sample.syntax
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, "2.25.1"
    image.Rows, image.Columns, image.SamplesPerPixel = SIDE, SIDE, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated, image.PixelRepresentation = 8 * stored.itemsize, 0
    image.BitsStored, image.HighBit = sample.bits, sample.bits - 1
    # All values are shown, in equal steps.
    image.WindowCenter, image.WindowWidth, image.VOILUTFunction = 2 ** (sample.bits - 1), 2**sample.bits, "LINEAR_EXACT"
    if sample.syntax == RLELossless and frame is None:
        image.compress(RLELossless, stored, encoding_plugin="pydicom", generate_instance_uid=False)
    elif sample.syntax.is_encapsulated:
        frame = frame if frame is not None else base64.b64decode(sample.frame)
        image.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
        image["PixelData"].VR = "OB"
    else:
        image.PixelData = stored.astype(
            stored.dtype.newbyteorder("<" if sample.syntax.is_little_endian else ">")
        ).tobytes()
        image["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def difference(sample: Sample, content: bytes) -> int:
    """Return by how many grey levels a sample's file differs at most from the pattern, as damcli reads it.

    Raises `DataError` where it cannot be read.
    """
    shown = pixels.grey16(pixels.read(io.BytesIO(content)))
    stored = np.rint(shown / 65535 * 2**sample.bits).astype(int)
    return int(np.abs(stored - pattern(sample.bits)).max())


def try_syntax(syntax: str) -> str:
    """Read the samples of a transfer syntax and say how that went: exact, within so many grey levels, or why not.

    >>> try_syntax("1.2.840.10008.1.2.1")
    'exact'
    """
    results = {f"{sample.bits} bit": _try(sample) for sample in SAMPLES if sample.syntax == syntax}
    if len(results) < 2:
        return "".join(results.values()) or "no sample"
    return "; ".join(f"{bits} {result}" for bits, result in results.items())


def _try(sample: Sample) -> str:
    try:
        off = difference(sample, file(sample))
    except DataError as problem:
        return f"cannot be read: {problem.fix or problem.what}"
    levels = f"{off} of {2**sample.bits} grey levels"
    return "exact" if off == 0 else f"within {levels}" if off <= sample.within else f"WRONG by {levels}"


# simplejpeg.encode_jpeg(pattern(8)[..., None], 98, "GRAY")
_BASELINE = """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQEBAQEAgMFBQQEBQQE
    BAT/wAALCAAgACABAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJx
    FDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ
    mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/AP4w/ht4I/49/wBz6fw1/QB8NvBH
    /Hv+59P4aPht4I/49/3Pp/DX9AHw28Ef8e/7n0/hr+b/AOG3gj/j3/c+n8NHw28Ef8e/7n0/hr+gD4beCP8Aj3/c+n8NHw28Ef8AHv8AufT+Gv5v/ht4
    I/49/wBz6fw1/QB8NvBH/Hv+59P4aPht4I/49/3Pp/DX9AHw28Ef8e/7n0/hr+b/AOG3gj/j3/c+n8NHw28Ef8e/7n0/hr+gD4beCP8Aj3/c+n8NHw28
    Ef8AHv8AufT+Gv/Z
"""
# The same with the marker SOF1 in the place of SOF0: every baseline stream is an extended one.
_EXTENDED = _BASELINE.replace("/wAALCAAg", "/wQALCAAg")
# imagecodecs.jpeg8_encode(pattern(12), 98, bitspersample=12)
_EXTENDED_12 = """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgIDAwQDAwMDAwICAwQDAwQEBAQEAgMFBQQEBQQE
    BAT/wQALDAAgACABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAADgD/xAAeEAEAAgEEAwAAAAAAAAAAAAABAgMRBQcKIQsxYf/aAAgBAQAAPwAYq+Nt4SEK
    4bASls/WjXpli2aESJCUOXNf1AHOe3r0gAPG28JCFcNgJS2frRr0yxbNCJEhKHLmv6gDnPb16vG28JCFcNgJS2frRr0yxbNCJEhKHLmv6gDnPb16QAHj
    beEhCuGwEpbP1o16ZYtmhEiQlDlzX9QBznt69G//AMbbwkIVw2AlLZ+tGvTLFs0IkSEocua/qAOc9vXq8bbwkIVw2AlLZ+tGvTLFs0IkSEocua/qAOc9
    vXpAAeNt4SEK4bASls/WjXpli2aESJCUOXNf1AHOe3r1eNt4SEK4bASls/WjXpli2aESJCUOXNf1AHOe3r0b/wDxtvCQhXDYCUtn60a9MsWzQiRIShy5
    r+oA5z29ekAB423hIQrhsBKWz9aNemWLZoRIkJQ5c1/UAc57evV423hIQrhsBKWz9aNemWLZoRIkJQ5c1/UAc57evSAA8bbwkIVw2AlLZ+tGvTLFs0Ik
    SEocua/qAOc9vXo3/wDjbeEhCuGwEpbP1o16ZYtmhEiQlDlzX9QBznt69XjbeEhCuGwEpbP1o16ZYtmhEiQlDlzX9QBznt69IADxtvCQhXDYCUtn60a9
    MsWzQiRIShy5r+oA5z29erxtvCQhXDYCUtn60a9MsWzQiRIShy5r+oA5z29ev//Z
"""
# imagecodecs.jpeg8_encode(pattern(12), lossless=True, predictor=6, bitspersample=12)
_LOSSLESS = """
    /9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAgACABAREA/8QAGgABAAMBAQEAAAAAAAAAAAAABQYICQcKDP/aAAgBAQAGAAD5/wD6B0DoHQOgdA6B6QOg
    dA6B0DoHQOgYf9A6B0DoHQOgdA9IHQOgdA6B0DoHQJgy002244qy002244qy002244qy002245MGWmk12GGWWmk12GGWWmk12GGWWmk12GJgy0k+2owy
    y0k+2owyy0k+2owyy0k+2oxMGUnk12GGWUnk12GGWUnk12GGWUnk12GJgy002nIFGWWmm05Aoyy002nIFGWWmm05ApMGWkl31GGWWkl31GGWWkl31GGW
    Wkl31GJgy002mwwyy002mwwyy002mwwyy002mwx6MNEdFtFtF9F9GNGPIxRCitFaLUWovRf2M6I6LaLaL6L6MaMeRiiFFaK0WotRei8wZaabbccVZaab
    bccVZaabbccVZaabbccmDLTSa7DDLLTSa7DDLLTSa7DDLLTSa7DEwZaSfbUYZZaSfbUYZZaSfbUYZZaSfbUYmDKTya7DDLKTya7DDLKTya7DDLKTya7D
    EwZaabTkCjLLTTacgUZZaabTkCjLLTTacgUmDLSS76jDLLSS76jDLLSS76jDLLSS76jEwZaabTYYZZaabTYYZZaabTYYZZaabTYYwvohRWitFqLUXov7
    GdEdFtFtF9F9GNGPIxRCitFaLUWovRf2M6I6LaLaL6L6MaMTBlppttxxVlppttxxVlppttxxVlppttxyYMtNJrsMMstNJrsMMstNJrsMMstNJrsMTBlp
    J9tRhllpJ9tRhllpJ9tRhllpJ9tRiYMpPJrsMMspPJrsMMspPJrsMMspPJrsMTBlpptOQKMstNNpyBRllpptOQKMstNNpyBSYMtJLvqMMstJLvqMMstJ
    LvqMMstJLvqMTBlpptNhhllpptNhhllpptNhhllpptNhj0YaI6LaLaL6L6MaMeRiiFFaK0WotRei/sZ0R0W0W0X0X0Y0Y8jFEKK0VotRai9F5gy00224
    4qy002244qy002244qy002245MGWmk12GGWWmk12GGWWmk12GGWWmk12GJgy0k+2owyy0k+2owyy0k+2owyy0k+2oxMGUnk12GGWUnk12GGWUnk12GGW
    Unk12GJgy002nIFGWWmm05Aoyy002nIFGWWmm05ApMGWkl31GGWWkl31GGWWkl31GGWWkl31GJgy002mwwyy002mwwyy002mwwyy002mwx//2Q==
"""
# imagecodecs.jpeg8_encode(pattern(12), lossless=True, predictor=1, bitspersample=12)
_LOSSLESS_SV1 = """
    /9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAgACABAREA/8QAGAABAQEBAQAAAAAAAAAAAAAABwYKCQz/2gAIAQEAAQAA8/8AoCAgICAgIGkBAQEBAQEB
    A4foCAgICAgIGkBAQEBAQEBAsEFBQUFBQUHRygoKCgoKCg8OEFBQUFBQUHRygoKCgoKCg2CEhIV0hISFo6QkJCukJCQuHKEhIV0hISFo6QkJCukJCQrB
    DQ7tDQ7tD0doaHdoaHdofDpDQ7tDQ7tD0doaHdoaHdodgiXiJeIl4iaPES8RLxEvETh2iXiJeIl4iaPES8RLxEvESwRb1Fvb1FvdHqLeot7eot7w8Rb1
    Fvb1FvdHqLeot7eot7YI19fXyNfX2j5Gvr6+Rr6+4eo19fXyNfX2j5Gvr6+Rr6+sEe/v7+/v7/R+j39/f39/f8Pke/v7+/v7/R+j39/f39/f6MEBAQEB
    AQEDh+gICAgICAgaQEBAQEBAQEDh+gICAgICAgWCCgoKCgoKDw4QUFBQUFBQdHKCgoKCgoKDw4QUFBQUFBQbBCQkK6QkJC4coSEhXSEhIWjpCQkK6QkJ
    C4coSEhXSEhIVghod2hod2h8OkNDu0NDu0PR2hod2hod2h8OkNDu0NDu0OwRLxEvES8ROHaJeIl4iXiJo8RLxEvES8ROHaJeIl4iXiJYIt6i3t6i3vDx
    FvUW9vUW90eot6i3t6i3vDxFvUW9vUW9sEa+vr5Gvr7h6jX19fI19faPka+vr5Gvr7h6jX19fI19fWCPf39/f39/w+R7+/v7+/v9H6Pf39/f39/w+R7+
    /v7+/v8AhegICAgICAgaQEBAQEBAQEDh+gICAgICAgaQEBAQEBAQECwQUFBQUFBQdHKCgoKCgoKDw4QUFBQUFBQdHKCgoKCgoKDYISEhXSEhIWjpCQkK
    6QkJC4coSEhXSEhIWjpCQkK6QkJCsENDu0NDu0PR2hod2hod2h8OkNDu0NDu0PR2hod2hod2h2CJeIl4iXiJo8RLxEvES8ROHaJeIl4iXiJo8RLxEvES
    8RLBFvUW9vUW90eot6i3t6i3vDxFvUW9vUW90eot6i3t6i3tgjX19fI19faPka+vr5Gvr7h6jX19fI19faPka+vr5Gvr6wR7+/v7+/v9H6Pf39/f39/w
    +R7+/v7+/v8AR+j39/f39/f6MEBAQEBAQEDh+gICAgICAgaQEBAQEBAQEDh+gICAgICAgWCCgoKCgoKDw4QUFBQUFBQdHKCgoKCgoKDw4QUFBQUFBQbB
    CQkK6QkJC4coSEhXSEhIWjpCQkK6QkJC4coSEhXSEhIVghod2hod2h8OkNDu0NDu0PR2hod2hod2h8OkNDu0NDu0OwRLxEvES8ROHaJeIl4iXiJo8RLx
    EvES8ROHaJeIl4iXiJYIt6i3t6i3vDxFvUW9vUW90eot6i3t6i3vDxFvUW9vUW9sEa+vr5Gvr7h6jX19fI19faPka+vr5Gvr7h6jX19fI19fWCPf39/f
    39/w+R7+/v7+/v8AR+j39/f39/f8Pke/v7+/v7//2Q==
"""
# pyjpegls by pydicom's Dataset.compress(JPEGLSLossless)
_LS = """
    /9j/9wALDAAgACABAREA/9oACAEBAAAAAJ/f399e399AAB7vN3utz8e/tASlttfTz8vHwgG/u7ezr6unosDExMTExMTcwKysrKysrNs1KSkpKSkpsXv3
    79+/fm7hw4cMGDEtLmbRotWri3EwYslTbhYWvPkGGWi5x11Z8gwVljbirzy5Zi02o66sVFbLKTbipaYGJUZFZYWF5gXlBgUlRUXYS0mLicoKC4vKyQsJ
    SYmLycpKCopIyotLiYlJyYgJy3ARkRIRvSQsLSB+QkDohLnT122SeuCksdOWaTtqV4N27BJyzKCtq1XJN2JYyJsMtX1CcqJMMtHkyrAiuw0dTJikiuwz
    cTKwAAXiAQH58enggAAF+bCgQQQggAAQH52dHJwbn5zsuEIREJgsuuQSUY7dc55BJaVMa1zyDDXbGtc8ySpbFZxT7Utis4pClS2Kzim2pbFZxUqzvUq0
    ulYlCrRlCsShVpNKxKFWoXFLLAjcVlmCdheQtqisoJWF79tSV4I11z1pSWq3lpBcywKsOrH1rK8qJ3Vby1hcU4cVPLF1xYobUqvsYI8bUqvsYIiZpSo/
    a5FjTCb9rE6zLOyqtDjLOyqtCSss7Ki0GMM7Ki0wAAAABvTEREQSfnxsamhmZHxzc8SSQk+PTEwLy4tEBgrOQpignRWchSfuKzkKTkyKziEWvZjlf4lT
    Id1+0mQrr6SJkK6pFmOxF8I0x2Ivukx2IvZEmOxFRpSFFQ7URlJI/RUOWIyjHqVDdiMoI3aVDViIrSEJiWFtE5E9YlhbRPj1SV1skxC5UhdTJUm5VAt1
    uiByiBbreY1REt1OX7VES2URItZKpLw+ayVSXvGslUl3etZKpKhAAAAAETwsKyopKD05mWSSQk9OycmJSQjPDl6ySSAvTIxDIu5kYhviFZkYiHuzIxFD
    2Y5X49ZjlfUgWY5V35MhXX9ZjsRduTHYi6P0x2IuvJjsRfkHKc2aUqbN05MUpUrxsnJglKlzROS9KVSh1F6aKkmIiZNFSR2REyaKkeIiZNNShD0WlojT
    Og0s0ZunQaWaM86DSzR6j7JJK552SSVycuyUlcs7JSV8AP/ZAA==
"""
# pyjpegls by pydicom's Dataset.compress(JPEGLSNearLossless, jls_error=2)
_LS_NEAR = """
    /9j/9wALDAAgACABAREA/9oACAEBAAIAAJlldldlkAArXr76766g4111zzzzA/xzxvxvxUUSUUUUWSQQQSQQVih73kEFkvc57nlsYUrkckkhCM7kY5CM
    zEks7qzEu7q7sQS7q7sRrMjspBLMjspKqiSZJLRNIjNEmyCGiTRLbZMnkNton9ttMghptCQkrUh6vUja5XvS9SSqV+8klX4kl3vKS9AAAAAABMtphphh
    hoAF61UWRAALLMLLLKNHddNKMpNJsjZJNkPSSTI8kkilV/91f85V/3VfIdavqrS+erSu0uX6hn7WvnKVdqJVQySnazTznz35n3Uu7FLxmvlSv7675Jal
    c1fzfAAAAAAJmdVQMyiiiiiTB3dUociiSCSCTElJkkxUkpNdJJMZSSkqr5Squ00r9SKvucuqlb02k0K2XmN0ItqaJVQil+ZJTyMlPqeeRynnFKjtT+10
    dqXnJfI5X7m8iZegAAAAAEy0EPIe8weeo45Pe5znGFyy9Skmky+SSRSJJtluVJOuv9uv+75/q6/V05f1dWdWr3U1WNXdt7rfTG6OadOSnuzTudKup71L
    2Ypd6lQzK75edJK7yVQA/9k=
"""
# pylibjpeg-openjpeg by pydicom's Dataset.compress(JPEG2000Lossless)
_J2K = """
    /0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAH/XAATQGBoaHBoaHBoaHBoaHBoaHD/ZAAlAAFD
    cmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/kAAKAAAAAALpAAH/k8fsBAibx/IHD9gKA/ACBAh/AGMFt8P2BofsDwfsDAzjJA7frwtmzyWi
    bK8G+1R4sS/D9haD8xaB+YoAF/wb+ylPqZAz6zD21HRDaLzdtKPdvxCxxGxYGbMaMd6Pgu4T4tZsRXP9P38Qbla7SxQgg9gOlJDPbKrvR7dUdsH5okH5
    okD8z4AXBRm5hcN1FjUWOaSgftJZ+c4bXRjB3JPBPYLPusIxXG3MJ04wTvYM8LEM4ieJACE4hYrPJsKq5piEIrTnX5ZtabFEfwwaFeKCSxJDHyw+TfeQ
    +haGgM+UWXjwoTdPeZd3CU7UlwCPK4YaZchRtT5V+ICDglYK6zKoDt9NWq0ojitoe9EwujI/FdipPVTktnebPZKnKL7Wq+Slyj5IvrYkQh017weMH2pU
    VqpvCi9HmLtFjj/riBXWBq956kt/sIO3HYjIDMPB+dMQfnTUD81QJMc8R7nYEfvZHkNeEWawXKsfZ7wjw2PyLCUfS+84BwrzbOtDhUc/+/cyipDr0+2R
    O8xLyVA4s31PS1Qq1/0rIg52vqWrfVUkSgholE/6GiK/mMuSeD0/vUiWGunELzQWuLs/f+ymcPB/qcHi6tleQ74J8CirHYqFcCtWrUUBqYoj25ASmjLA
    HN8cYCwF9mpbAWAvxSmwNxkkwJCAWYHUzfoXfHCffv1hTbItG5ljLmsRvZBtA6r2pjc4vZ+VIvvN2Nzi9n7Lx5Fhjc4vZ+4LeMhgnT+femLA1DlAqSQ3
    p2QigNBN18SQHMHo2on9DYt2ThX1pFKnOwIfRuIBx/OfzHyJIPOFgBRMTYYs5ixA1utyKKIGd6XmHwvDtMgzQASKzLcJsUKoSRB7UnPm7BqI6iVFJMY7
    HMCZEczTPg//fQZT5FdXBcZnB6U16bzFwuVZ3p5y/QRYziWd0eeijVnKOrep5nzw9SJTyXjW1xV6ZlfJqA7DKoxoUTJK5OWZ1bhTE1OzmIQv/9k=
"""
# pylibjpeg-openjpeg by pydicom's Dataset.compress(JPEG2000, j2k_cr=[2])
_J2K_LOSSY = """
    /0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAD/XAAjQpcglvCW8JbAjwCPAI7gh1CHUIdocAVw
    BXBHd9N303di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4y/5AACgAAAAACgwAB/5PD+wEABcvB/0EA4P9ggHAH6gQAgXcDTN8I
    U8H6g8D7waA/gHAM/Q+I54fpCyp9QGyxB+LcIOLTv8H6i0D8hWA+8TAibPK5pKgUjqOPUSKZhYpYSfEtMJO6DhnOMLlw4/iVHYc6n9Kf/skBZiJyDXg9
    i1My1MdEytULFJNSz/G/4sH3oUH3oUD6yMAV2JefjjrTtTYJQ3cI1C3ulgYjE+DOVi+yIK+MjR8JEUwLh/HdlDf2FRnxSpcIB9IyJJmfiqxv81/AJDPo
    v0d5Vo8V2JefjjZ4bKkszDha/q6koTtUTv4Usq8o816i8ba75U4h20yUMuDByX1u2AabdOYDO7zYvO97A2pVbW4dQUzpoLYV2Kk9VOS2d5tY6dAtJTzV
    VAshLmMtu4ILvCuMWAaULc6j9cD7HyB9j5AfUhAhbAfpPR3/Vs+NspmC7QxAS+NgxHqyyIkaxavH8XO8iR20lNOJrWZhYTk0kC2UeZwpfY3IGN8RYKjE
    0JiGnt/HEBRK9NGGpJ5ZkFkd21M3+i6iO6rPWKtOF0DOQWp3ZRwKoxOIlIf+w42/h6PZ+n0ERgKL5Zui5/gzIgx2AMgco+yz+vT6gHOnDFXLhX/ueFwY
    fZi7MccAmtP/IsdKM7G1sVbygtr4Xfj7f/0wG7ZZrZSVaID0vbA+ZTylcD0wmfzauAVopYJJbxvhycbJRvNBhbht4BvTiwAgk58AjYLlfh9gdzVM1caX
    4CPZK03mtZkGIiKdimr82CTGOxzAmRHM0z4PxQ72xPaMZ3ZGAGMRJfpxrTR23viBOouvTVoFDiIZW50sRMl8yTDepCjK3B9RIJQpaVhwxqXtIP/Z
"""
# imagecodecs.htj2k_encode(pattern(16), reversible=True)
_HTJ2K = """
    /0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQ
    iIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAABJoAAf+TwAAmJ/YFB3QAwAATQAASwAASgKj5Awd0AF4Ch3QAWQGHdADAABUwAAVMAAFS
    TC7BGxoBQrQASsJkCaEAoZQA+SSa6FIBQzQAwAAWzAABbMAAFtAbXfrfWx8wedYFpKCOmzqDZgBeZxCA0LgAGfN3uXdASjS5PlXAHJcCcUb2KoOEQCmX
    AB9stfVtLLkYx8bCSG7Yt2bJNvoxZxCAUbcAwAAXrUAAF61AABepgAII3OgmxIoRcjuW3OgmZCUCIkCASHsbnmx8J8KKSHsbnoAEKUDAxncirIi0t+HJ
    xncirIAEKUCASCobemxsIoKISCobeoAE+QBEuSMS5IxLkiEQCywhALKyAQJuENCNgEgC9ghsJPCOgEgBVIQYsUJuw8Yn70SItGJvw8YeTXbcWNJNhEgr
    9jZsfPJOhEgiVIRos4JtA7Yn2ERgs4JtA7Ye2P4AANcpco/KXKOIQCIIQCaxAQoMIPiDAAoCRwh6IPiDQAaBwAAURz16+OMAChRHPQwQQGCgxx8HUKA4
    6tHDHwdQDBBAYAAKAQM9CDgwAIWAAQME/gBiMdR9yR4y/kYoMQQgE5EBwAAv0BgABfo7AAC+rgH01wcAAAQB6K8PwC8wCAgIuP9HAQIBAAEBBvwYQEAA
    AAEB9/8YQCAAIAgIeAgAYAgACADQtz4AAQAAQwBAAMBPYBAQEGDAjwEEBAAQEHD/DwMEAgACAgz4MYCAAACCgICHAPStD0AAAMAQABAAoG99AAIAfgKD
    gICA+38MEAgACAgw4McAAgIACAi4/0cBAgEAQUDAQwAAQwBAAIC+9QEIAAAYAgACAH4CTRAAYMC/AQMEABAA3P8bMCAAIADAgH8DBggAIAAI+Hng8E4b
    ku+V/K4q/vfBSE4KSF3yuKv5XH3wThSDDhd8r+VxV/e+CkJwUkLEPyMY80ZB5oxjzlgDMQE0ATQBFNEPoD6B+wL+AAYAAQEDAvz0AahP4L6AP4ABQEDA
    AAD/AQQMEEAAAIAAAwQQAAAgwAABBAAACDBAwAAAAAAgSMCAAD99AOoTuC/gD2AAEBAwIMBPH4D6BPcA/wEIMEAAAQAAAgwQQAAAgAADBBAAACDAgMAA
    oB9AfQL3BfwBDAACAgYE+OkDUJ/AfQF/AAOAgIABAP4DBAwQQAAAgAADBBAAACDAAAEEAAAIMEDAAAAPICZIAfMAYoIUMA8gJkgB8wBiggSweAAAAG2A
    AANsAAAbYAAA1wqFQqHRjAV8MQErYxgA/DEBKuFQqFQ6IQANsYwAfhiAlbGMAGuFQqFQ6MYCvhiAlbGMAH4YgJV7DxSzFLMUs1EFm+vsOrvOTnoYGPiX
    HgYG/KWHgYF/6fPNBQQGBh4EBAYGHgQEBgYeSA8DA/7Sw8DAv/QwMOAvfb65gMDAwIOAwMDAg4DAwMAD6WFg4F96GBjwlx4GBv6lzzcXEBgYeBAQGBh4
    EBAYGHjgn3/++Y9/1/Nv5t/Nrx4u4u4o6DedCJOhEnQiSePF3F3FHQbzoRJ0Ik6ESTx4u4u4o6DedCJOhEnQiSZH/xKfiU/EpFAE/9k=
"""
# imagecodecs.htj2k_encode(pattern(16), reversible=True, tlm=True), in the order RPCL as all that OpenJPH makes here
_HTJ2K_RPCL = """
    /0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQ
    iIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv9VAAoAYAAAAAAEmv+QAAoAAAAABJoAAf+TwAAmJ/YFB3QAwAATQAASwAASgKj5Awd0AF4Ch3QAWQGH
    dADAABUwAAVMAAFSTC7BGxoBQrQASsJkCaEAoZQA+SSa6FIBQzQAwAAWzAABbMAAFtAbXfrfWx8wedYFpKCOmzqDZgBeZxCA0LgAGfN3uXdASjS5PlXA
    HJcCcUb2KoOEQCmXAB9stfVtLLkYx8bCSG7Yt2bJNvoxZxCAUbcAwAAXrUAAF61AABepgAII3OgmxIoRcjuW3OgmZCUCIkCASHsbnmx8J8KKSHsbnoAE
    KUDAxncirIi0t+HJxncirIAEKUCASCobemxsIoKISCobeoAE+QBEuSMS5IxLkiEQCywhALKyAQJuENCNgEgC9ghsJPCOgEgBVIQYsUJuw8Yn70SItGJv
    w8YeTXbcWNJNhEgr9jZsfPJOhEgiVIRos4JtA7Yn2ERgs4JtA7Ye2P4AANcpco/KXKOIQCIIQCaxAQoMIPiDAAoCRwh6IPiDQAaBwAAURz16+OMAChRH
    PQwQQGCgxx8HUKA46tHDHwdQDBBAYAAKAQM9CDgwAIWAAQME/gBiMdR9yR4y/kYoMQQgE5EBwAAv0BgABfo7AAC+rgH01wcAAAQB6K8PwC8wCAgIuP9H
    AQIBAAEBBvwYQEAAAAEB9/8YQCAAIAgIeAgAYAgACADQtz4AAQAAQwBAAMBPYBAQEGDAjwEEBAAQEHD/DwMEAgACAgz4MYCAAACCgICHAPStD0AAAMAQ
    ABAAoG99AAIAfgKDgICA+38MEAgACAgw4McAAgIACAi4/0cBAgEAQUDAQwAAQwBAAIC+9QEIAAAYAgACAH4CTRAAYMC/AQMEABAA3P8bMCAAIADAgH8D
    BggAIAAI+Hng8E4bku+V/K4q/vfBSE4KSF3yuKv5XH3wThSDDhd8r+VxV/e+CkJwUkLEPyMY80ZB5oxjzlgDMQE0ATQBFNEPoD6B+wL+AAYAAQEDAvz0
    AahP4L6AP4ABQEDAAAD/AQQMEEAAAIAAAwQQAAAgwAABBAAACDBAwAAAAAAgSMCAAD99AOoTuC/gD2AAEBAwIMBPH4D6BPcA/wEIMEAAAQAAAgwQQAAA
    gAADBBAAACDAgMAAoB9AfQL3BfwBDAACAgYE+OkDUJ/AfQF/AAOAgIABAP4DBAwQQAAAgAADBBAAACDAAAEEAAAIMEDAAAAPICZIAfMAYoIUMA8gJkgB
    8wBiggSweAAAAG2AAANsAAAbYAAA1wqFQqHRjAV8MQErYxgA/DEBKuFQqFQ6IQANsYwAfhiAlbGMAGuFQqFQ6MYCvhiAlbGMAH4YgJV7DxSzFLMUs1EF
    m+vsOrvOTnoYGPiXHgYG/KWHgYF/6fPNBQQGBh4EBAYGHgQEBgYeSA8DA/7Sw8DAv/QwMOAvfb65gMDAwIOAwMDAg4DAwMAD6WFg4F96GBjwlx4GBv6l
    zzcXEBgYeBAQGBh4EBAYGHjgn3/++Y9/1/Nv5t/Nrx4u4u4o6DedCJOhEnQiSePF3F3FHQbzoRJ0Ik6ESTx4u4u4o6DedCJOhEnQiSZH/xKfiU/EpFAE
    /9k=
"""
# imagecodecs.htj2k_encode(pattern(16), 2**-14, reversible=False)
_HTJ2K_LOSSY = """
    /0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAAKP9SAAwAAgABAAUEBEAA/1wAIyKnGKbqpuqmvJ8AnwCe
    4pdMl0yXZIADgAOARofSh9KHYf9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAAOmAAH/k8AABOAnIPgHB3QAwAAEsAABNAAAShYDh3QApPcD
    h3QAoQGHdADAAAqoAAFTAAAqQHZqhCxg8AGCtACKipoHEAFGtADf8uSZ8AEDNADAABbMAAFswAAWyOXF8b02PSIGoHXRuM7+YaCi+heJxiAilwD76XWW
    bcUypHcr9qQuHdvF5QCghwCA2ZgAwy4uq2OwaTdiaGHf2ObgSP0DVlwhAS64AMAAXp0AAXp8AAXcgDQ89SkGCPIkBQftIYxlgg4JTDIHRUoEEJBIOn70
    EEF4kloEEJRMDpKMHFjAgTEUaEkUTCkQQKAi+NjRM/wBEv5GPuSMS/kYYFkCEBORAS71NisITA8yGkk2LQZaCxAG8ggkRQdKBJQQTKYKFBS0H4QIICGQ
    HB0YEaBCMJBA4hC64MpRC5DiEMrgqkH7AADXL7kj/S/kQhARAhATkQEQiAWhYQg4CgTXIDAEAgIEAkHE4AgoEAgEgYCA5ACgHCIGySEAAPwBueWcv38D
    l+/gQQeOAAA4UgHAAF9nQABfc8AAXqaGQmlcfKXiCFEKpXHxM1oNKZjCqFCYZBAgg4KCKYwKhRlFo0aFyhAYGJRqYnBoVKgMgWFG1XCSQYAMCgqmMCoU
    JhkEyKCYUTRjUKqJwaFRoTIEBgalmhgcZlQNKZjCqFCYZBAgg4KCKYwKhRlFs0aFyhAYGJRqYnBoVKgMgWFG1bBSgTgQCIul8SgUKhWIA4GYUfx5JDkh
    yQ5LckOiHRDotyQ5IckOS3JDoh0Q6LckOSHJDktyQ6IdEOi3JDkhyQ5LeVJ8QqT4hUnxCpt7A4iIiIiURopFSgEz2qBWGBNEBpRRpSQoBcxog1phVCAV
    x8OhUBAYDIrBoVAQGBCIimMF5ASRAWVUKQlKATPaoFYYE0QGlFGlJCwNy6PBYFAMDoWCwGBQDA6FAqWRYpFSwIw2qBXGBJEBZVQpCUoBM9qgVhgVSMXx
    cCgUBAaDYnAoFAQGBGJkkEEBR0IGBRwJGRRwJGRQwHQ5KdPkp0+SnT5KbtrWta1nCEBTJiEBTJiEBTJiEBTdta1rWs4QgKZMQgKZMQgKZMQgKbtrWta1
    nCEBTJiEBTJiEBTJiEBTdrRtaNrRtaFxBT9QKNGNBtRAoUS/NxpQA4US3WhA7Q4USnSjATVQKNHvABSlKG39d/XfGvoRj9CNv0IjDb+u/rvjX0I2/QjH
    6EWw2/rv67419CMfoRt+hEYhCEMD/9k=
"""
SAMPLES = (
    Sample(ImplicitVRLittleEndian, 12),
    Sample(ExplicitVRLittleEndian, 12),
    Sample(DeflatedExplicitVRLittleEndian, 12),
    Sample(ExplicitVRBigEndian, 12),
    Sample(RLELossless, 12),
    Sample(JPEGBaseline8Bit, 8, _BASELINE, within=1),
    Sample(JPEGExtended12Bit, 8, _EXTENDED, within=1),
    Sample(JPEGExtended12Bit, 12, _EXTENDED_12, within=3),
    Sample(JPEGLossless, 12, _LOSSLESS),
    Sample(JPEGLosslessSV1, 12, _LOSSLESS_SV1),
    Sample(JPEGLSLossless, 12, _LS),
    Sample(JPEGLSNearLossless, 12, _LS_NEAR, within=2),
    Sample(JPEG2000Lossless, 12, _J2K),
    Sample(JPEG2000, 12, _J2K_LOSSY, within=6),
    Sample(HTJ2KLossless, 16, _HTJ2K),
    Sample(HTJ2KLosslessRPCL, 16, _HTJ2K_RPCL),
    Sample(HTJ2K, 16, _HTJ2K_LOSSY, within=5),
)
