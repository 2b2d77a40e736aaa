"""Requests and answers of the Open Inference Protocol, byte by byte."""

import json
import struct

import numpy as np

from ptv2.serving.dialects.tensors import LENGTH_HEADER

DTYPES = {"FP32": "<f4", "INT64": "<i8"}


def packed(*texts):
    """Elements of BYTES."""
    parts = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def tensor(name, shape, data=None, **fields):
    fields |= {} if data is None else {"data": data}
    return {"name": name, "shape": shape, "datatype": "BYTES"} | fields


def binary_tensor(name, shape, size):
    return tensor(name, shape, parameters={"binary_data_size": size})


def with_binary(body, *parts):
    """A body with binary data after its JSON, and its headers."""
    text = json.dumps(body).encode()
    return {"content": text + b"".join(parts), "headers": {LENGTH_HEADER: str(len(text))}}


def outputs(response):
    """The outputs of an answer as arrays."""
    assert response.status_code == 200, response.text
    end = int(response.headers.get(LENGTH_HEADER, len(response.content)))
    found, rest = {}, response.content[end:]
    for output in json.loads(response.content[:end])["outputs"]:
        values = output.get("data")
        if values is None:
            size = output["parameters"]["binary_data_size"]
            part, rest = rest[:size], rest[size:]
            values = unpacked(part, output["datatype"])
        found[output["name"]] = np.array(values).reshape(output["shape"])
    assert not rest
    return found


def unpacked(part, datatype):
    if datatype != "BYTES":
        return np.frombuffer(part, DTYPES[datatype])
    texts = []
    while part:
        (length,) = struct.unpack_from("<I", part)
        texts.append(part[4 : 4 + length].decode())
        part = part[4 + length :]
    return texts


def mutated(body, chance):
    """A body with a few bytes changed, doubled, left out, or cut off."""
    body = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(body))
        match chance.randrange(5):
            case 0:
                body[place] = chance.randrange(256)
            case 1:
                body[place:place] = body[place : place + chance.randrange(20)]
            case 2:
                del body[place + 1 : place + chance.randrange(2, 5)]
            case 3:
                body[place] = chance.choice(b'0129-[]{},":')
            case 4:
                body[max(place, 1) :] = b""
    return bytes(body)
