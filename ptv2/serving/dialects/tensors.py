"""Tensors of the Open Inference Protocol: in JSON, or as binary data after it."""

import json
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from pydantic import Field

from ..http import MAX_BODY, Body, Texts, UpToFirstFault
from ..service import MAX_CHOICES

LENGTH_HEADER = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON, if binary data follows."""
MAX_ELEMENTS = MAX_CHOICES
"""Of an input; no kind of task takes more."""
_LENGTH = struct.Struct("<I")
"""Before every element of BYTES."""
_DATATYPES = {"f": "FP32", "i": "INT64", "O": "BYTES"}
"""By NumPy's kinds of dtypes; texts are objects."""

Name = Annotated[str, Field(max_length=64)]


class InputParameters(Body):
    """The bytes of binary data that an input has in place of `data`."""

    binary_data_size: Annotated[int, Field(ge=0, le=MAX_BODY)] | None = None


class InputTensor(Body):
    """A tensor of texts; `data` is flat, row by row, or has a list for every row."""

    name: Name
    shape: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_ELEMENTS)]],
        UpToFirstFault(),
        Field(min_length=1, max_length=2),
    ]
    datatype: Literal["BYTES"]
    parameters: InputParameters = InputParameters()
    data: Annotated[list[str | Texts], UpToFirstFault(), Field(max_length=MAX_ELEMENTS)] | None = (
        None
    )


class OutputParameters(Body):
    """How an output is wanted; None: as the request says for all."""

    binary_data: bool | None = None


class RequestedOutput(Body):
    """An output that is wanted."""

    name: Name
    parameters: OutputParameters = OutputParameters()


def split_body(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a body, and the binary data after it.

    Args:
        length: the value of `LENGTH_HEADER`. None: all is JSON.

    Raises:
        ValueError: it is no length that the body has.
    """
    if length is None:
        return body, b""
    if not re.fullmatch("[0-9]{1,9}", length) or int(length) > len(body):
        raise ValueError(
            f"{LENGTH_HEADER}: expected 0 to the body's {len(body)} bytes, got {length[:20]!r}"
        )
    return body[: int(length)], body[int(length) :]


def read_texts(tensors: Sequence[InputTensor], binary: bytes) -> list[list[str]]:
    """The elements of every tensor, row by row.

    Args:
        binary: what tensors with a `binary_data_size` have, in their order.

    Raises:
        ValueError: the data does not fit the shape or the size, is not UTF-8, or some is left.
    """
    found, start = [], 0
    for tensor in tensors:
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise ValueError(f"{tensor.name}: expected either data or binary_data_size")
        count = prod(tensor.shape)
        if count > MAX_ELEMENTS:
            raise ValueError(
                f"{tensor.name}: expected a shape of at most {MAX_ELEMENTS} elements, got {count}"
            )
        if size is None:
            found.append(_flat(tensor, count))
            continue
        part = binary[start : start + size]
        if len(part) < size:
            raise ValueError(
                f"{tensor.name}: expected {size} bytes of binary data, got {len(part)}"
            )
        found.append(_decoded(tensor.name, part, count))
        start += size
    if start < len(binary):
        raise ValueError(f"body: {len(binary) - start} bytes of binary data belong to no input")
    return found


def _flat(tensor: InputTensor, count: int) -> list[str]:
    data = tensor.data or []
    texts = [text for text in data if isinstance(text, str)]
    if not texts:
        rows = [row for row in data if isinstance(row, list)]
        if len(tensor.shape) == 2 and [len(row) for row in rows] == [tensor.shape[1]] * len(rows):
            texts = [text for row in rows for text in row]
    elif len(texts) < len(data):
        raise ValueError(f"{tensor.name}: expected texts or lists of texts, got both")
    if len(texts) != count:
        raise ValueError(f"{tensor.name}: expected data of the shape {tensor.shape}")
    return texts


def _decoded(name: str, data: bytes, count: int) -> list[str]:
    """Elements of BYTES: each a length of 4 bytes, little-endian, and so many bytes of UTF-8."""
    texts, start = [], 0
    for place in range(count):
        begin = start + _LENGTH.size
        length = _LENGTH.unpack_from(data, start)[0] if begin <= len(data) else None
        if length is None or begin + length > len(data):
            raise ValueError(f"{name}: the binary data ends within element {place} of {count}")
        start = begin + length
        try:
            texts.append(data[begin:start].decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}: expected UTF-8 in element {place}: {error.reason}"
            ) from None
    if start < len(data):
        raise ValueError(
            f"{name}: {len(data) - start} bytes of binary data are left after {count} elements"
        )
    return texts


def response(
    head: Mapping[str, Any], outputs: Mapping[str, NDArray[Any]], binary: Collection[str]
) -> Response:
    """An answer: all in JSON, or some outputs as binary data after it.

    Args:
        head: fields beside the outputs.
        outputs: float32, int64, or texts as objects.
        binary: the names of those that become binary data.
    """
    tensors, parts = [], []
    for name, array in outputs.items():
        datatype, shape = _DATATYPES[array.dtype.kind], list(array.shape)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if name in binary:
            parts.append(_encoded(array))
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    content = {**head, "outputs": tensors}
    if not parts:
        return JSONResponse(content)
    text = json.dumps(content, allow_nan=False).encode()
    return Response(
        b"".join([text, *parts]),
        headers={LENGTH_HEADER: str(len(text))},
        media_type="application/octet-stream",
    )


def _encoded(array: NDArray[Any]) -> bytes:
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    texts = [text.encode() for text in array.ravel()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
