"""The protocol: what is sent arrives, and nothing else is taken for it."""

import base64
import io
import json
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from rlcm.rewards.image.pixels import to_png, to_uint8
from rlcm.rewards.served.wire import JSON, NPZ, Limits, WireError, decode_answer, decode_request, encode_request

LIMITS = Limits(images=8, side=64, bytes=12 * 8 * 32 * 32)


@pytest.mark.parametrize(("encoding", "kind"), [("uint8", NPZ), ("float32", NPZ), ("png", JSON)])
def test_round_trip(images, prompts, encoding, kind):
    metadata = [{"n": i, "text": "ü"} for i in range(5)]
    body, found_kind = encode_request(images, prompts, metadata, ["a", "b"], encoding=encoding)
    assert found_kind == kind
    decoded, request = decode_request(body, kind, LIMITS)
    expected = images if encoding == "float32" else (images * 255).round() / 255
    assert torch.equal(decoded, expected)
    assert (request.prompts, request.metadata, request.rewards) == (prompts, metadata, ["a", "b"])


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def text(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


GOOD = np.zeros((1, 3, 4, 4), np.uint8)
ONE = text({"prompts": ["a"]})
OBJECTS = np.array([{"prompts": ["a"]}], dtype=object)


def bomb():
    """A zip member of 64 MiB of zeros in 64 kB."""
    array = io.BytesIO()
    np.save(array, np.zeros((1, 3, 4096, 4096), np.uint8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", array.getvalue())
        archive.writestr("request.npy", b"")
    return buffer.getvalue()


def lying_header():
    """An array that claims more numbers than it holds."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (1, 3, 2**20, 2**20)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", array.getvalue())
        archive.writestr("request.npy", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not an npz"),
        (b"\x80\x04K\x01.", "not an npz"),
        (npz(images=GOOD, request=ONE)[:-30], "not an npz"),
        (npz(images=GOOD), "must hold"),
        (npz(images=GOOD, request=ONE, more=ONE), "must hold"),
        (npz(images=GOOD, request=OBJECTS), "type object"),
        (npz(images=GOOD.astype(np.float64), request=ONE), "type float64"),
        (npz(images=GOOD[0], request=ONE), "shape"),
        (npz(images=GOOD.transpose(0, 2, 3, 1), request=ONE), r"\[B, 3, h, w\]"),
        (npz(images=GOOD[:0], request=text({"prompts": []})), "0 pictures"),
        (npz(images=np.zeros((9, 3, 4, 4), np.uint8), request=ONE), "9 pictures are not in"),
        (npz(images=np.zeros((1, 3, 4, 65), np.uint8), request=ONE), "65 x 4 pixels"),
        (npz(images=np.zeros((8, 3, 64, 64), np.uint8), request=ONE), "exceed"),
        (npz(images=np.full((1, 3, 4, 4), np.nan, np.float32), request=ONE), "NaN"),
        (npz(images=np.full((1, 3, 4, 4), 255.0, np.float32), request=ONE), r"in \[0, 1\]"),
        (npz(images=GOOD, request=text({"prompts": ["a", "b"]})), "2 prompts do not fit 1"),
        (npz(images=GOOD, request=text({"prompts": ["a"], "metadata": []})), "0 metadata entries"),
        (npz(images=GOOD, request=text({"prompts": "a"})), "prompts: Input should be a valid array"),
        (npz(images=GOOD, request=text({"prompts": ["a"], "promts": 1})), "promts"),
        (npz(images=GOOD, request=text([1])), "body"),
        (bomb(), "unpacks to more"),
        (lying_header(), "1048576 x 1048576 pixels"),
    ],
)
def test_wrong_archives(body, message):
    with pytest.raises(WireError, match=message):
        decode_request(body, NPZ, LIMITS)


def png(width=4, height=4, file_format="PNG", text=0):
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    if text:
        info.add_text("t", "x" * text, zip=True)
    Image.new("RGB", (width, height)).save(buffer, file_format, pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()


SHORT_HEADER = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\4IHDR\0\0\0\4" + zlib.crc32(b"IHDR\0\0\0\4").to_bytes(4, "big")


def huge_header():
    """A PNG that says that it has 60000 x 60000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    whole = base64.b64decode(png())
    return whole[:8] + b"\0\0\0\x0d" + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompts": ["a"], "images": ["%%%"]}, "images.0 is not in base64"),
        ({"prompts": ["a"], "images": [base64.encodebytes(base64.b64decode(png())).decode()]}, "leave out line breaks"),
        ({"prompts": ["a"], "images": [base64.b64encode(SHORT_HEADER).decode()]}, "or a damaged one"),
        ({"prompts": ["a"], "images": [base64.b64encode(huge_header()).decode()]}, "more pixels than are accepted"),
        ({"prompts": ["a"], "images": [png(file_format="JPEG")]}, "images.0 is not a PNG"),
        ({"prompts": ["a"], "images": [f"data:image/png;base64,{png()}"]}, "send what follows its comma"),
        ({"prompts": ["a"], "images": [png(text=2**21)]}, "a long text beside its pixels"),
        ({"prompts": ["a"], "images": [base64.b64encode(base64.b64decode(png())[:45]).decode()]}, "damaged PNG"),
        ({"prompts": ["a", "b"], "images": [png(), png(5)]}, "one size"),
        ({"prompts": ["a"], "images": [png(65, 1)]}, "65 x 1"),
        ({"prompts": ["a"] * 9, "images": [png()] * 9}, "9 pictures"),
        ({"prompts": ["a"], "images": []}, "images"),
        ({"prompts": ["a"]}, "images: Field required"),
        ({"images": [png()], "prompts": ["a"], "rewards": []}, "rewards"),
    ],
)
def test_wrong_json(request_, message):
    with pytest.raises(WireError, match=message):
        decode_request(json.dumps(request_).encode(), JSON, LIMITS)


def test_png_is_lossless(images):
    level = to_uint8(images)[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(level)))), level)


def test_answer():
    assert decode_answer(b'{"scores": {"a": [1, 2.5], "b/c": [0, -1]}}', 2) == {"a": [1.0, 2.5], "b/c": [0.0, -1.0]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b'{"scores": {"a": [1, 2', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"<html>502</html>", "502"),
        (b"[1, 2]", "no object `scores`"),
        (b'{"scores": {}}', "no object `scores`"),
        (b'{"scores": {"a": [1]}}', "1 numbers for 2"),
        (b'{"scores": {"a": 1}}', "int for 2"),
        (b'{"scores": {"a": [1, NaN]}}', "nan for picture 1"),
        (b'{"scores": {"a": [1, 1' + b"0" * 400 + b"]}}", "for picture 1, which is no finite number"),
        (b'{"scores": {"a": [Infinity, 1]}}', "inf for picture 0"),
        (b'{"scores": {"a": [1e999, 1]}}', "inf for picture 0"),
        (b'{"scores": {"a": [null, 1]}}', "None for picture 0"),
        (b'{"scores": {"a": ["1", 1]}}', "'1' for picture 0"),
        (b'{"scores": {"a": [true, 1]}}', "True for picture 0"),
    ],
)
def test_wrong_answers(body, message):
    with pytest.raises(WireError, match=message):
        decode_answer(body, 2)


@settings(max_examples=150, deadline=None, database=None)
@given(
    kind=st.sampled_from([NPZ, JSON]),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), min_size=1, max_size=4),
    cut=st.integers(0, 2000),
)
def test_damaged_requests_are_refused_or_whole(kind, edits, cut):
    body, _ = encode_request(torch.zeros(2, 3, 4, 4), ["a", "b"], encoding="png" if kind == JSON else "uint8")
    damaged = bytearray(body)
    for place, content in edits:
        place %= len(damaged)
        damaged[place : place + len(content)] = content
    try:
        images, request = decode_request(bytes(damaged[: max(1, len(damaged) - cut)]), kind, LIMITS)
    except WireError:
        return
    assert len(images) == len(request.prompts)
    assert ((images >= 0) & (images <= 1)).all()


def archive(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, value in members:
            data = io.BytesIO()
            np.save(data, value)
            target.writestr(name, data.getvalue())
    return buffer.getvalue()


MEMBERS = [("images.npy", GOOD), ("request.npy", ONE)]


def test_what_was_packed_small_is_measured_before_it_is_unpacked():
    many = archive([(f"{n}.npy", GOOD) for n in range(100)])
    values = b'{"prompts": ["a"], "metadata": [' + b"{}," * 2**20 + b"{}]}"
    text_bomb = archive([("images.npy", GOOD), ("request.npy", np.frombuffer(values, np.uint8))], zipfile.ZIP_DEFLATED)
    bodies = [
        (archive(MEMBERS, zipfile.ZIP_BZIP2), NPZ, "packed by method 12"),
        (archive(MEMBERS, zipfile.ZIP_LZMA), NPZ, "packed by method 14"),
        (archive([*MEMBERS, MEMBERS[0]]), NPZ, "must hold"),
        (many, NPZ, "must hold"),
        (text_bomb, NPZ, "more than 1048576 values"),
        (values[:-1] + b', "images": []}', JSON, "more than 1048576 values"),
    ]
    tracemalloc.start()
    for body, kind, message in bodies:
        with pytest.raises(WireError, match=message):
            decode_request(body, kind, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    tracemalloc.stop()
    assert decode_request(archive(MEMBERS, zipfile.ZIP_DEFLATED), NPZ, LIMITS)[1].prompts == ["a"]


def test_texts_packed_into_pictures_do_not_add_up():
    info = PngImagePlugin.PngInfo()
    for n in range(40):
        info.add_text(f"t{n}", "x" * 2**20, zip=True)
    data = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(data, "PNG", pnginfo=info)
    picture = base64.b64encode(data.getvalue()).decode()
    body = json.dumps({"prompts": ["a"] * 8, "images": [picture] * 8}).encode()
    tracemalloc.start()
    images, _ = decode_request(body, JSON, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 120 * 2**20  # one picture's, and not eight's
    tracemalloc.stop()
    assert images[:, 0].min() == 1


def test_pictures_of_very_many_parts_are_refused_before_they_are_read():
    whole = base64.b64decode(png())
    for part in (b"\0\0\0\3tEXta\0b" + zlib.crc32(b"tEXta\0b").to_bytes(4, "big"), b"\0\0\0\0IDAT\x35\xaf\x06\x1e"):
        pictures = [base64.b64encode(whole[:33] + part * count + whole[33:]).decode() for count in (900, 1100)]
        few, many = (json.dumps({"prompts": ["a"], "images": [picture]}).encode() for picture in pictures)
        assert decode_request(few, JSON, LIMITS)[0].shape == (1, 3, 4, 4)
        with pytest.raises(
            WireError, match=r"images\.0 holds more than 1,000 parts that are no pixels; save it again without them"
        ):
            decode_request(many, JSON, LIMITS)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([archive(MEMBERS), archive(MEMBERS, zipfile.ZIP_DEFLATED), npz(images=GOOD, request=ONE)]),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=6)), max_size=4),
    st.binary(max_size=60),
)
def test_no_body_does_more_than_be_refused(body, changes, tail):
    body = bytearray(body + tail)
    for place, data in changes:
        place %= len(body)
        body[place : place + len(data)] = data
    try:
        images, request = decode_request(bytes(body), NPZ, LIMITS)
    except WireError:
        return
    assert images.shape == (1, 3, 4, 4)
    assert len(request.prompts) == 1
