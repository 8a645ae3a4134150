"""Every transfer syntax on its sample: whole, damaged, in boxes, signed, and as one of several frames."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from damcli.dicom import samples, streams
from damcli.dicom.pixels import DECODERS, _decode, grey16, lossless_jpeg, read
from damcli.errors import DataError

IMAGECODECS = importlib.util.find_spec("imagecodecs") is not None
LIBJPEG = "pylibjpeg" in get_decoder(JPEGExtended12Bit).available_plugins
READ = [s for s in samples.SAMPLES if (s.syntax, s.bits) != (JPEGExtended12Bit, 12) or IMAGECODECS or LIBJPEG]
COMPRESSED = [s for s in READ if s.frame]
LOSSLESS = [s for s in COMPRESSED if not s.within]


def named(sample: samples.Sample) -> str:
    return f"{sample.syntax.rsplit('.', 1)[-1]}-{sample.bits}"


def of(syntax: UID) -> samples.Sample:
    return next(sample for sample in samples.SAMPLES if sample.syntax == syntax)


def bare(sample: samples.Sample) -> bytes:
    return base64.b64decode(sample.frame)


def test_every_syntax_that_damcli_reads_has_a_sample():
    assert {sample.syntax for sample in samples.SAMPLES} == set(DECODERS)


@pytest.mark.parametrize("sample", READ, ids=named)
def test_a_sample_is_read_as_it_was_made(sample):
    off = samples.difference(sample, samples.file(sample))
    assert off <= sample.within
    said = "exact" if off == 0 else f"within {off} of {2**sample.bits} grey levels"
    assert said in samples.try_syntax(sample.syntax)


def test_a_decoder_that_gives_other_pixels_is_found_out(monkeypatch):
    other = of(JPEG2000Lossless)._replace(frame=of(UID("1.2.840.10008.1.2.4.91")).frame)
    monkeypatch.setattr(samples, "SAMPLES", (other,))
    assert samples.try_syntax(JPEG2000Lossless).startswith("WRONG by ")


def test_a_sample_that_cannot_be_read_says_what_to_do(monkeypatch):
    monkeypatch.setitem(DECODERS, JPEGLossless, ("imaginary",))
    assert samples.try_syntax(JPEGLossless) == "cannot be read: pip install 'damcli[codecs]'"
    assert samples.try_syntax("1.2.3") == "no sample"


@pytest.mark.parametrize("sample", COMPRESSED, ids=named)
def test_what_is_cut_off_is_refused(sample):
    frame = bare(sample)
    for length in range(40, len(frame) - 2, 29):
        with pytest.raises(DataError, match="cut off or damaged"):
            grey16(read(io.BytesIO(samples.file(sample, frame[:length]))))


GUARDED = [s for s in COMPRESSED if s.syntax not in (JPEGLossless, JPEGLosslessSV1) or IMAGECODECS]


@pytest.mark.parametrize("sample", GUARDED, ids=named)
def test_an_end_that_comes_too_early_is_no_end(sample):
    frame = bare(sample)
    for length in range(len(frame) // 2, len(frame) - 20, 41):
        with pytest.raises(DataError, match="cut off or damaged"):
            grey16(read(io.BytesIO(samples.file(sample, frame[:length] + streams.END))))


CHILD = """
import base64, io, json, sys
from damcli.dicom import pixels
from damcli.errors import DataError
for line in sys.stdin:
    try:
        image = pixels.grey16(pixels.read(io.BytesIO(base64.b64decode(line))))
        print(image.shape == (32, 32))
    except DataError:
        print(True)
"""


def test_flipped_bits_give_pixels_or_a_reason_and_never_end_the_process():
    files = []
    for sample in COMPRESSED:
        chance = random.Random(named(sample))
        for _ in range(60):
            frame = bytearray(bare(sample))
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
            files.append(base64.b64encode(samples.file(sample, bytes(frame))).decode())
    child = subprocess.run(
        [sys.executable, "-c", CHILD], input="\n".join(files), capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0
    assert child.stdout.split() == ["True"] * len(files)


def test_a_stream_that_claims_another_size_is_refused_before_it_is_decoded():
    for syntax, marker, at in ((JPEGLosslessSV1, b"\xff\xc3", 5), (of(JPEGExtended12Bit).syntax, b"\xff\xc1", 5)):
        frame = bytearray(bare(of(syntax)))
        struct.pack_into(">HH", frame, frame.index(marker) + at, 65535, 65535)
        with pytest.raises(DataError, match="cut off or damaged"):
            grey16(read(io.BytesIO(samples.file(of(syntax), bytes(frame)))))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless, HTJ2K], ids=lambda uid: uid.rsplit(".", 1)[-1])
def test_jpeg_2000_in_the_boxes_of_a_jp2_file(syntax):
    sample = of(syntax)
    stream = bare(sample)

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    header = box(b"ihdr", struct.pack(">IIHBBBB", samples.SIDE, samples.SIDE, 1, stream[42], 7, 0, 0))
    header += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))  # grey (T.800, I.5.3.3)
    boxed = (
        box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header) + box(b"jp2c", stream)
    )
    whole = grey16(read(io.BytesIO(samples.file(sample, boxed))))
    # OpenJPH, where it is installed, leaves boxes to OpenJPEG, which rounds the lossy wavelet another way.
    steps = 1 if sample.within else 0
    np.testing.assert_allclose(whole.astype(int), grey16(read(io.BytesIO(samples.file(sample)))), rtol=0, atol=steps)


SIGNED = (samples.pattern(12).astype(np.int16) - 2048).astype(np.int16)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_signed_pixels_of_fewer_bits_than_allocated(dicom, syntax):
    image = dicom(SIGNED, BitsStored=12)
    image.compress(syntax, generate_instance_uid=False)
    stored, _ = _decode(image, 0)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, SIGNED)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless])
def test_signed_pixels_in_a_syntax_that_knows_no_sign(dicom, syntax):
    image = dicom(SIGNED, BitsStored=12, syntax=syntax, PixelData=encapsulate([even(bare(of(syntax)))]))
    stored, _ = _decode(image, 0)
    values = samples.pattern(12).astype(int)
    np.testing.assert_array_equal(stored, np.where(values < 2048, values, values - 4096))


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL])
def test_a_sign_in_the_header_that_the_htj2k_stream_does_not_have(dicom, syntax):
    # All values are below 2¹⁵, so that their sixteen bits are the same with a sign.
    image = dicom(SIGNED, syntax=syntax, PixelData=encapsulate([even(bare(of(syntax)))]))
    stored, _ = _decode(image, 0)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, samples.pattern(12))


def even(frame: bytes) -> bytes:
    return frame + b"\0" * (len(frame) % 2)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, HTJ2KLossless, JPEG2000Lossless, JPEGLSLossless])
def test_the_frame_that_is_asked_for(syntax):
    sample = of(syntax)
    image = read(io.BytesIO(samples.file(sample)))
    frame = get_frame(image.PixelData, 0, number_of_frames=1)
    image.NumberOfFrames = 3
    image.PixelData = encapsulate([frame[:60], frame, frame[:60]])  # only the second is sound
    np.testing.assert_array_equal(grey16(image, frame=1), grey16(read(io.BytesIO(samples.file(sample)))))
    for frame_number, reason in ((0, "cut off or damaged"), (2, "cut off or damaged"), (3, "none has the number 3")):
        with pytest.raises(DataError, match=reason):
            grey16(image, frame=frame_number)


def test_a_bare_lossless_jpeg():
    stream = bare(of(JPEGLossless))
    decoded = lossless_jpeg(stream, samples.SIDE, samples.SIDE)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, samples.pattern(12))
    for damaged in (stream[:-40], stream[:60]):
        with pytest.raises(DataError, match="cut off or damaged"):
            lossless_jpeg(damaged, samples.SIDE, samples.SIDE)
    with pytest.raises(DataError, match="cut off or damaged"):
        lossless_jpeg(stream, 2 * samples.SIDE, samples.SIDE)


def test_doctor_tries_every_syntax(run_here):
    code, out, err = run_here("info", "doctor", "--json")
    assert code == 0, err
    rows = json.loads(out)["transfer_syntaxes"]
    assert [row["uid"] for row in rows] == list(DECODERS)
    for row in rows:
        if row["uid"] != JPEGExtended12Bit:
            assert row["sample"] == "exact" or row["sample"].startswith("within ")
    (extended,) = (row["sample"] for row in rows if row["uid"] == JPEGExtended12Bit)
    assert ("pip install 'damcli[codecs]'" in extended) == (not IMAGECODECS and not LIBJPEG)
