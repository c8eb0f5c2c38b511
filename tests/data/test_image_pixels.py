"""Image files of every kind to 8 bits: by their range, upright, the same in every layout."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import Dataset, load_split
from robust_ham.data.formats.images import open_image
from robust_ham.errors import RequestError

RAMP = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
GREY = (RAMP >> 8).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content):
    return np.asarray(open_image(content, "x"))


def pnm(magic, maximum, values):
    height, width = values.shape[:2]
    return f"{magic} {width} {height} {maximum}\n".encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(RAMP)),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
        pnm("P5", 65535, RAMP),
    ],
    ids=["png", "tiff", "tiff lzw", "big-endian tiff", "pgm"],
)
def test_sixteen_bit_images_keep_their_high_byte(content):
    assert np.array_equal(pixels(content), GREY)


def test_twelve_bit_pgm_is_scaled_by_its_maximum():
    assert np.array_equal(pixels(pnm("P5", 4095, RAMP >> 4)), GREY)


def test_sixteen_bit_colour_is_scaled():
    found = pixels(pnm("P6", 65535, np.repeat(RAMP[:, :, None], 3, axis=2)))
    assert np.array_equal(found[:, :, 1], np.round(RAMP / 257))


def tiff(values, bits, photometric=1, sample_format=1):
    """An uncompressed grey TIFF of one strip; ``values`` are its rows as they are stored."""
    content, height = values.tobytes(), len(values)
    width = 8 * len(content) // (height * bits)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 278: height, 279: len(content), 339: sample_format}
    entries = b"".join(
        np.array([tag, 4 if tag in {256, 257, 273, 278, 279} else 3], "<u2").tobytes()
        + np.array([1, tags[tag]], "<u4").tobytes()
        for tag in sorted(tags)
    )
    return b"II*\0\x08\0\0\0" + np.uint16(len(tags)).tobytes() + entries + bytes(4) + content


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (
            encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"),
            "F",
        ),
        (encoded(Image.fromarray(RAMP.astype(np.int32) * 9), "TIFF"), "I"),
        (tiff(RAMP.astype(np.int16), 16, sample_format=2), "I"),
        (tiff(RAMP, 16, photometric=0), "I;16"),
        (tiff(np.zeros((8, 12), np.uint8), 12), "I;16"),
    ],
    ids=["float", "32 bits", "signed", "inverted", "12 bits"],
)
def test_pixels_of_no_fixed_range_are_refused(content, mode):
    with pytest.raises(RequestError, match=f"x: expected 8- or 16-bit grey .* mode {mode}, which"):
        open_image(content, "x")


def test_the_tiff_of_this_test_is_read_where_it_is_plain():
    assert np.array_equal(pixels(tiff(RAMP, 16)), GREY)


def palette(**options):
    image = Image.fromarray(COLOUR).quantize(16)
    return encoded(image, **options), np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.fromarray(GREY > 100)), np.where(GREY > 100, 255, 0)),
        (encoded(Image.fromarray(GREY)), GREY),
        (encoded(Image.fromarray(GREY), "GIF"), np.repeat(GREY[:, :, None], 3, axis=2)),
        palette(),
        palette(transparency=3),
        palette(transparency=bytes(range(16))),
        (encoded(Image.fromarray(np.dstack([COLOUR, COLOUR[:, :, :1]]))), COLOUR),
        (
            encoded(Image.fromarray(np.dstack([GREY, GREY.T]))),
            np.repeat(GREY[:, :, None], 3, axis=2),
        ),
    ],
    ids=["1 bit", "grey", "gif", "palette", "one transparent", "transparent", "RGBA", "LA"],
)
def test_eight_bit_images_are_those_that_torchvision_reads(content, expected, tmp_path):
    found = pixels(content)
    assert np.array_equal(found, expected)
    (tmp_path / "a.png").write_bytes(content)
    reference = np.asarray(default_loader(str(tmp_path / "a.png")))
    assert np.array_equal(np.asarray(Image.fromarray(found).convert("RGB")), reference)


def test_cmyk_images_are_those_that_torchvision_reads(tmp_path):
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.jpg")
    found = pixels((tmp_path / "a.jpg").read_bytes())
    assert np.array_equal(found, np.asarray(default_loader(str(tmp_path / "a.jpg"))))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_frames_are_refused(kind):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="x: expected one image, got several frames"):
        open_image(content, "x")


def test_of_a_stereo_jpeg_the_first_image_is_taken():
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(content).astype(int).mean() - COLOUR.mean()) < 10


# --- EXIF orientation ---------------------------------------------------------------------------

UPRIGHT = {  # how the stored pixels of each orientation are turned, by the EXIF standard
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}


def with_orientation(image, orientation, kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_upright(orientation, kind):
    content = with_orientation(Image.fromarray(COLOUR), orientation, kind)
    assert np.array_equal(pixels(content), UPRIGHT[orientation](COLOUR))
    content = with_orientation(Image.fromarray(RAMP), orientation)
    assert np.array_equal(pixels(content), UPRIGHT[orientation](GREY))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_says_nothing(orientation):
    content = with_orientation(Image.fromarray(COLOUR), orientation)
    assert np.array_equal(pixels(content), COLOUR)


def test_orientation_is_the_same_in_every_layout(tmp_path):
    square = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), np.uint8)
    contents = [with_orientation(Image.fromarray(a), 3 + i) for i, a in enumerate(square)]
    for i, content in enumerate(contents):
        folder = tmp_path / f"photos/train/class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(content)
    (tmp_path / "table").mkdir()
    table = {"image": [{"bytes": content} for content in contents], "label": [0, 1] * 3}
    pq.write_table(pa.table(table), tmp_path / "table/train.parquet")
    folders = load_split(DatasetConfig(name="photos"), "train", tmp_path)
    parquet = load_split(DatasetConfig(name="table"), "train", tmp_path)
    assert folders.hash() == parquet.hash()
    expected = np.stack([UPRIGHT[3 + i](a) for i, a in enumerate(square)]).transpose(0, 3, 1, 2)
    assert np.array_equal(parquet.images.numpy(), expected)
    streamed = Dataset(DatasetConfig(name="photos", stream=True, image_size=8), tmp_path).train
    first = open_image(streamed.files[0]).convert("RGB")
    assert np.array_equal(np.asarray(first).transpose(2, 0, 1), expected[0])


def test_damaged_exif_does_not_keep_an_image_from_being_read():
    content = encoded(Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert np.array_equal(pixels(content), COLOUR)


PPM_HEADERS = [b"P5\n1 1 255\n", b"P5\n# made by GIMP\n1 # width\n1\n255\n", b"P4\n#\n1 1\n"]


@pytest.mark.parametrize("header", PPM_HEADERS)
def test_comments_of_a_ppm_are_passed_over(header):
    assert open_image(header + b"\0" * 5_000).size == (1, 1)


@pytest.mark.parametrize("filling", [b"#" + b"a" * 5_000 + b"\n", b" " * 5_000])
@pytest.mark.parametrize("place", range(3))
def test_a_ppm_with_a_long_header_is_refused_before_it_is_read(filling, place):
    words = [b"P5\n", b"1 ", b"1\n255\n\0"]
    words.insert(place + 1, filling)
    if place < 2:
        with pytest.raises(RequestError, match="not a readable image"):
            open_image(b"".join(words))
    else:  # behind the header: more bytes than the image has
        assert open_image(b"".join(words)).size == (1, 1)
