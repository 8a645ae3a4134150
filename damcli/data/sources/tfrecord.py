"""TFRecord files without TensorFlow: length-framed records that hold an `Example` protobuf each (FORMATS section 6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from damcli.errors import DataError

LARGEST = 2**28  # bytes of a record: a length above it is a damaged one
Feature = bytes | list[int]


def records(file: Path) -> Iterator[bytes]:
    """Yield the records of a file one by one; a length is checked against its checksum, the data is not.

    Raises `DataError` where the file is none, damaged or cut off.
    """
    with file.open("rb") as stream:
        while head := stream.read(12):
            if len(head) < 12:
                raise DataError("this TFRecord file is cut off", where=file)
            length, checksum = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != checksum or length > LARGEST:
                raise DataError("this is no TFRecord file, or a damaged one", where=file)
            data = stream.read(length + 4)
            if len(data) < length + 4:
                raise DataError("this TFRecord file is cut off", where=file)
            yield data[:length]


def features(record: bytes, file: Path) -> dict[str, Feature]:
    """Return the features of an `Example`: its first bytes, or its integers; floats are left out.

    Raises `DataError` if it is none.
    """
    found: dict[str, Feature] = {}
    try:
        for _, example in fields(record):  # Example.features
            for _, entry in fields(example):  # Features.feature, a map
                pair = dict(fields(entry))
                name = pair[1].decode()
                for kind, value in fields(pair.get(2, b"")):
                    content = list(fields(value))
                    if kind == 1 and content:  # BytesList
                        found[name] = content[0][1]
                    elif kind == 3:  # Int64List, packed or not
                        numbers = b"".join(part for _, part in content)
                        found[name] = list(_varints(numbers))
    except (IndexError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise DataError("a record is no Example, or a damaged one", where=file) from error
    return found


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of a protobuf message's fields; a number's content is its varint.

    >>> list(fields(bytes([0x0A, 2, 65, 66, 0x18, 5])))
    [(1, b'AB'), (3, b'\\x05')]
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            _, end = _varint(message, position)
        elif kind == 2:
            length, position = _varint(message, position)
            end = position + length
        elif kind in (1, 5):
            end = position + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if end > len(message):
            raise IndexError
        yield key >> 3, message[position:end]
        position = end


def _varints(content: bytes) -> Iterator[int]:
    position = 0
    while position < len(content):
        value, position = _varint(content, position)
        yield value - 2**64 if value >= 2**63 else value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def masked_crc(data: bytes) -> int:
    """Return the masked CRC-32C (Castagnoli) that TFRecord frames carry.

    >>> hex(masked_crc(b"123456789"))
    '0xc78ab0e5'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
