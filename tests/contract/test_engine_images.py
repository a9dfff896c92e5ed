"""The engine for images against the pipeline of the library it stands on, with small models of real architectures; and
image files that mean harm."""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.domain import VersionFacts
from modelmora_lifecycle.workers import probe_of
from modelmora_worker.engines import base, image_files, image_sizes
from modelmora_worker.engines.images import ImagesEngine
from PIL import Image
from small_models import build, picture

MOST_BYTES, MOST_PIXELS = 1 << 20, 250_000
KINDS = ("seer", "watcher")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture
def load() -> Iterator[Callable[..., ImagesEngine]]:
    loaded: list[ImagesEngine] = []

    def load(folder: Path, **options: Any) -> ImagesEngine:
        engine = ImagesEngine()
        options = {"max_image_bytes": MOST_BYTES, "max_image_pixels": MOST_PIXELS, **options}
        spec = base.EngineSpec("transformers_images", artifact_path=str(folder), task="classification", options=options)
        engine.footprint = engine.load(spec, lambda *_: None)  # type: ignore[attr-defined]
        loaded.append(engine)
        return engine

    yield load
    for engine in loaded:
        engine.close()


def entry(data: bytes, **fields: Any) -> worker_pb2.TextEntry:
    return worker_pb2.TextEntry(data=data, **fields)


def scores(engine: base.Engine, files: Sequence[bytes], **fields: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    prepared = engine.prepare([entry(data, **fields) for data in files])
    assert not prepared.failed
    for batch in prepared.micro_batches:
        rows = engine.infer(batch)
        for position, row in zip(
            batch.positions, numpy.frombuffer(rows.data, "<f4").reshape(len(batch.positions), -1), strict=True
        ):
            assert position not in found
            found[position] = row
    return found


@functools.cache
def _pipeline(folder: Path) -> Any:
    from transformers import pipeline

    return pipeline("image-classification", model=str(folder))


def reference(folder: Path, image: Image.Image, function: str | None = "none") -> list[float]:
    """Scores of one image by the library's own pipeline, in the order of the labels."""
    pipe = _pipeline(folder)
    told = pipe(image, top_k=99, **({"function_to_apply": function} if function else {}))
    by_label = {one["label"]: one["score"] for one in told}
    return [by_label[label] for label in pipe.model.config.id2label.values()]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def rotated(n: int, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(n, 90, 40), "JPEG", exif=exif)


def with_hole(n: int) -> bytes:
    """A palette of which one colour is transparent."""
    return saved(picture(n).convert("P"), "PNG", transparency=7)


FILES: dict[str, bytes] = {
    "a jpeg": saved(picture(1), "JPEG"),
    "a progressive jpeg": saved(picture(2), "JPEG", progressive=True),
    "a png": saved(picture(3), "PNG"),
    "a webp": saved(picture(4), "WEBP"),
    "a lossless webp": saved(picture(5), "WEBP", lossless=True),
    "a webp with transparency": saved(picture(6).convert("RGBA"), "WEBP"),
    "a bmp": saved(picture(7), "BMP"),
    "a gif": saved(picture(8), "GIF"),
    "wide": saved(picture(9, 400, 3), "PNG"),
    "tall": saved(picture(10, 3, 400), "PNG"),
    "one pixel": saved(picture(11, 1, 1), "PNG"),
    "grey": saved(picture(12).convert("L"), "PNG"),
    "black and white": saved(picture(13).convert("1"), "PNG"),
    "grey with transparency": saved(picture(14).convert("LA"), "PNG"),
    "transparent": saved(picture(15).convert("RGBA"), "PNG"),
    "a palette": saved(picture(16).convert("P"), "PNG"),
    "a palette with transparency": with_hole(17),
    "cmyk": saved(picture(18).convert("CMYK"), "JPEG"),
    "several in one jpeg, as cameras write them": saved(picture(19), "MPO", save_all=True, append_images=[picture(20)]),
    **{f"turned, {orientation}": rotated(20 + orientation, orientation) for orientation in range(2, 9)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_score_is_that_of_the_librarys_own_pipeline(load, folder, kind):
    engine = load(folder(kind))
    files = list(FILES.values())
    raw, likely = scores(engine, files, raw_scores=True), scores(engine, files)
    wanted = []
    for n, (name, data) in enumerate(FILES.items()):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            wanted.append(reference(folder(kind), image))
            assert numpy.abs(raw[n] - wanted[-1]).max() < 1e-4, name
            if n < 3:
                assert numpy.abs(likely[n] - reference(folder(kind), image, None)).max() < 1e-5, name
    assert numpy.ptp(numpy.array(wanted), axis=0).max() > 0.1, "the scores tell the images apart"
    assert list(engine.footprint.labels) == ["square", "circle", "line", "noise", "blank"]
    footprint = engine.footprint
    assert (footprint.max_image_bytes, footprint.max_image_pixels) == (MOST_BYTES, MOST_PIXELS)
    assert footprint.max_resized_pixels == 4_000_000


def test_sixteen_bits_of_grey_are_scaled_not_cut_off(load, folder):
    grey = numpy.asarray(picture(1).convert("L"))
    deep = Image.fromarray(grey.astype(numpy.uint16) * 257)
    assert deep.mode.startswith("I;16")
    found = scores(load(folder("seer")), [saved(deep, "PNG"), saved(Image.fromarray(grey), "PNG")])
    assert numpy.abs(found[0] - found[1]).max() < 1e-6


def test_images_of_different_shapes_are_computed_apart(load, folder, tmp_path):
    shutil.copytree(folder("watcher"), tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({**settings, "do_resize": False}))
    pictures = [picture(n, *size) for n, size in enumerate([(40, 40), (64, 48), (40, 40), (48, 64), (64, 48)])]
    engine = load(tmp_path / "m")
    files = [saved(one, "PNG") for one in pictures]
    batches = engine.prepare([entry(data) for data in files]).micro_batches
    assert sorted(sorted(batch.positions) for batch in batches) == [[0, 2], [1, 4], [3]]
    found = scores(engine, files, raw_scores=True)
    for n, one in enumerate(pictures):
        assert numpy.abs(found[n] - reference(tmp_path / "m", one)).max() < 1e-4


def test_labels_that_may_be_right_at_once_have_probabilities_of_their_own(load, folder, tmp_path):
    shutil.copytree(folder("seer"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    (found,) = scores(load(tmp_path / "m"), [FILES["a png"]]).values()
    with Image.open(io.BytesIO(FILES["a png"])) as image:
        assert numpy.abs(found - reference(tmp_path / "m", image, None)).max() < 1e-5
    assert abs(found.sum() - 1) > 1e-3


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A file with this head; what follows need not fit."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (head, *chunks, (b"IEND", b""))
    )


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """One frame, which may be larger than the screen that the head tells."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF0, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


def jpeg_of(height: int, width: int) -> bytes:
    """A JPEG whose head tells another size than it has."""
    data = bytearray(FILES["a jpeg"])
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def frames(kind: str) -> bytes:
    return saved(picture(1), kind, save_all=True, append_images=[picture(2), picture(3)])


BOMBS = {
    "a png of zeros": saved(Image.new("1", (30_000, 30_000)), "PNG"),
    "a png by its head alone": png(2**31 - 1, 2**31 - 1),
    "a gif": gif((65_535, 65_535), (65_535, 65_535)),
    "a jpeg": jpeg_of(65_500, 65_500),
    "a webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff" * 6,
    "a lossless webp": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/\xff\xff\xff\x0f" + bytes(12),
    "a simple webp": b"RIFF\x1a\0\0\0WEBPVP8 \x0d\0\0\0\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(8),
    "a bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, 2**31 - 1, -(2**31)) + bytes(28),
}


def test_a_bomb_is_refused_by_its_head_before_anything_is_opened(load, folder, monkeypatch):
    engine = load(folder("seer"))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    prepared = engine.prepare([entry(data) for data in BOMBS.values()])
    assert [position for position, _ in prepared.failed] == list(range(len(BOMBS)))
    for (_, error), name in zip(prepared.failed, BOMBS, strict=True):
        assert isinstance(error, errors.InvalidArgument), name
        assert "pixels, at most 250000 in all" in error.message, name
    assert not prepared.micro_batches


BAD = {
    "nothing": (b"", "no image"),
    "a text": (b"just words", "no image of"),
    "a drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of"),
    "a tiff": (saved(picture(1), "TIFF"), "no image of"),
    "too many bytes": (saved(picture(1), "PNG") + bytes(MOST_BYTES), "bytes, at most"),
    "a png cut off in its head": (FILES["a png"][:20], "cut off"),
    "a png cut off": (FILES["a png"][:-600], "cannot be read"),
    "a jpeg cut off in its head": (FILES["a jpeg"][:40], "cut off"),
    "a jpeg cut off": (FILES["a jpeg"][:-300], "cannot be read"),
    "a jpeg without a frame": (b"\xff\xd8\xff\xd9", "without a frame"),
    "a jpeg with a broken head": (b"\xff\xd8\xff\xe0\x00\x04ab" + bytes(20), "broken head"),
    "a webp cut off": (FILES["a webp"][:-100], "cannot be read"),
    "a webp cut off in its head": (FILES["a webp"][:25], "cut off"),
    "a webp of no kind": (b"RIFF\x1a\0\0\0WEBPVP9 " + bytes(20), "nobody knows"),
    "a png without pixels": (png(5, 0), "5 × 0 pixels"),
    "a png without data": (png(5, 5), "cannot be read"),
    "a png of a head alone": (png(5, 5)[:33], "it is no whole PNG"),
    "a png of garbage": (png(5, 5, (b"IDAT", b"garbage")), "cannot be read"),
    "a png with a bomb of text": (
        png(5, 5, (b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 9))), "cannot be read"
    ),
    "a gif that grows beyond its head": (gif((5, 5), (60_000, 60_000)), "at most 250000"),
    "a moving gif": (frames("GIF"), "moves"),
    "a moving png": (frames("PNG"), "moves"),
    "a moving webp": (frames("WEBP"), "moves"),
}  # fmt: skip


def test_a_bad_image_fails_alone_with_what_is_wrong_with_it(load, folder):
    engine = load(folder("seer"))
    good = scores(engine, [FILES["a png"]])[0]
    for name, (data, words) in BAD.items():
        prepared = engine.prepare([entry(FILES["a png"]), entry(data)])
        ((position, error),) = prepared.failed
        assert position == 1, name
        assert isinstance(error, errors.InvalidArgument), name
        assert words in error.message, f"{name}: {error.message}"
        (batch,) = prepared.micro_batches
        row = numpy.frombuffer(engine.infer(batch).data, "<f4")
        assert numpy.abs(row - good).max() < 1e-5
    ((_, error),) = engine.prepare([worker_pb2.TextEntry(text="a text")]).failed
    assert "takes image files" in error.message


def thin(width: int, height: int) -> bytes:
    return saved(Image.new("1", (width, height)), "PNG", optimize=True)


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    """A model with other settings of its processor."""
    shutil.copytree(folder, to)
    file = to / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return to


def test_the_images_of_a_batch_are_shared_by_all_tracks(load, folder):
    engine = load(folder("watcher"))
    engine.tracks = 2
    batches = engine.prepare([entry(FILES["a png"])] * 8).micro_batches
    assert [len(batch.positions) for batch in batches] == [4, 4]


@pytest.mark.parametrize("size", [(30_000, 1), (300_000, 1), (1, 300_000), (1, 30_000)])
def test_an_image_that_the_processor_would_blow_up_is_refused_by_its_head_alone(load, folder, monkeypatch, size):
    engine = load(folder("watcher"), max_image_pixels=32_000_000)
    trap = thin(*size)
    assert len(trap) < 1000
    good = scores(engine, [FILES["a png"]])[0]
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, **_: opened.append(file) or real(file, **_))
    prepared = engine.prepare([entry(FILES["a png"]), entry(trap), entry(FILES["a png"])])
    assert len(opened) == 2, "the two that are looked at"
    ((position, error),) = prepared.failed
    assert position == 1
    assert isinstance(error, errors.InvalidArgument)
    wide, high = (73 * edge if edge > 1 else 73 for edge in size)
    assert f"{size[0]} × {size[1]} pixels, of which the model's processor makes {wide} × {high}" in error.message
    assert [position for batch in prepared.micro_batches for position in batch.positions] == [0, 2]
    for batch in prepared.micro_batches:
        assert (
            abs(numpy.frombuffer(engine.infer(batch).data, "<f4").reshape(len(batch.positions), -1) - good).max() < 1e-5
        )


def test_a_long_panorama_is_looked_at_as_the_library_does(load, folder):
    panorama = picture(3, 4000, 200)
    engine = load(folder("watcher"), max_image_pixels=32_000_000)
    found = scores(engine, [saved(panorama, "PNG"), saved(panorama.transpose(Image.Transpose.ROTATE_90), "PNG")])
    assert numpy.abs(found[0] - reference(folder("watcher"), panorama, None)).max() < 1e-4
    assert len(found) == 2


def test_what_the_processor_of_a_fixed_size_makes_in_between_is_bounded(load, folder, monkeypatch):
    engine = load(folder("seer"), max_image_pixels=32_000_000)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    ((_, error),) = engine.prepare([entry(png(1, 32_000_000))]).failed
    assert "makes 48 × 32000000; at most 32000000 in all" in error.message


def test_an_image_is_held_against_the_bounds_as_it_stands_upright(load, folder):
    """A head tells how it lies, and whether it is to be turned stands elsewhere."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("L", (60_000, 1)), "JPEG", exif=exif)
    ((_, error),) = (
        load(folder("seer"), max_image_pixels=60_000, max_resized_pixels=70_000).prepare([entry(data)]).failed
    )
    assert "the image has 1 × 60000 pixels, of which the model's processor makes 48 × 60000" in error.message


def test_a_model_that_sees_an_image_as_it_is_sees_no_large_one(load, folder, tmp_path):
    engine = load(changed(folder("watcher"), tmp_path / "m", do_resize=False), max_image_pixels=32_000_000)
    prepared = engine.prepare([entry(saved(Image.new("L", size), "PNG")) for size in ((2001, 2000), (100, 30))])
    assert [position for position, _ in prepared.failed] == [0]
    assert "makes 2001 × 2000; at most 4000000 in all" in prepared.failed[0][1].message
    assert [batch.positions for batch in prepared.micro_batches] == [[1]]


def test_images_that_are_computed_together_take_no_more_room_than_usual_ones(load, folder, tmp_path):
    """Eight of the largest would take eight times what one does, and one is as large as eighty usual ones."""
    engine = load(changed(folder("watcher"), tmp_path / "m", do_resize=False), micro_batch_entries=2)
    sizes = [(224, 224), (300, 300), (100, 100), (300, 300), (224, 224), (100, 100), (100, 100)]
    files = [saved(picture(n, *size), "PNG") for n, size in enumerate(sizes)]
    batches = engine.prepare([entry(data) for data in files]).micro_batches
    assert sorted(batch.positions for batch in batches) == [[0, 4], [1], [2, 5], [3], [6]]
    assert scores(engine, files).keys() == set(range(len(sizes)))


def test_an_image_of_a_shape_that_the_model_cannot_take_fails_alone(load, folder, tmp_path):
    engine = load(changed(folder("seer"), tmp_path / "m", size={"height": 48, "width": 48}))
    engine._processor.do_resize, engine._resizing = False, image_sizes.Resizing()
    prepared = engine.prepare([entry(saved(picture(n, *size), "PNG")) for n, size in enumerate([(48, 48), (60, 40)])])
    found = {tuple(batch.positions): engine.infer(batch) for batch in prepared.micro_batches}
    assert not found[(0,)].failed
    ((position, error),) = found[(1,)].failed
    assert position == 1
    assert isinstance(error, errors.InvalidArgument)
    assert "cannot take an image of 60 × 40 pixels" in error.message


def test_a_processor_that_nobody_knows_is_given_no_narrow_image(load, folder, monkeypatch):
    monkeypatch.setattr("modelmora_worker.engines.image_sizes._PLAIN", frozenset())
    engine = load(folder("seer"))
    failed = engine.prepare([entry(thin(*size)) for size in ((330, 10), (10, 330), (320, 10))]).failed
    assert [position for position, _ in failed] == [0, 1]
    assert "over 32 times" in failed[0][1].message


_PROCESSORS = {
    "vit": {"size": {"height": 20, "width": 30}},
    "clip": {"size": {"shortest_edge": 20}},
    "bit": {"size": {"shortest_edge": 20}},
    "deit": {},
    "convnext": {"size": {"shortest_edge": 20}, "crop_pct": 0.7},
    "convnext, warped": {"size": {"shortest_edge": 384}},
    "poolformer": {"size": {"shortest_edge": 20}, "crop_pct": 0.9},
    "poolformer, square": {"size": {"height": 20, "width": 20}, "crop_pct": 0.9},
    "poolformer, fixed": {"size": {"height": 20, "width": 30}, "crop_pct": 0.9},
    "levit": {"size": {"shortest_edge": 20}},
    "textnet": {"size": {"shortest_edge": 20}},
    "donut": {"size": {"height": 30, "width": 20}},
    "mobilenet_v2": {"size": {"shortest_edge": 20}},
    "mobilevit": {"size": {"shortest_edge": 20}},
    "efficientnet": {},
    "segformer": {},
    "siglip": {},
    "pvt": {},
    "beit": {},
    "perceiver": {},
    "edges": {"size": {"shortest_edge": 20, "longest_edge": 40}},
}


@pytest.mark.parametrize("name", _PROCESSORS)
def test_the_size_that_is_reckoned_is_the_one_that_the_librarys_processor_makes(monkeypatch, name):
    """Seen at the one place where Pillow resizes for it."""
    from modelmora_worker.engines.images import _resizing_of
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name as named

    kind = {"edges": "vit"}.get(name, name.partition(",")[0])
    kind = {"donut": "donut-swin"}.get(kind, kind)
    processor = named(IMAGE_PROCESSOR_MAPPING_NAMES[kind]["pil"])(**_PROCESSORS[name])
    resizing = _resizing_of(processor)
    assert resizing is not None
    made: list[tuple[int, int]] = []
    real = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, **to: made.append(size) or real(image, size, **to))
    pick = random.Random(7)
    for _ in range(40):
        width, height = (pick.choice([pick.randint(1, 9), pick.randint(1, 200)]) for _ in range(2))
        made.clear()
        reckoned = resizing.resized(width, height)
        try:
            processor(images=Image.new("RGB", (width, height)), return_tensors="pt")
        except ValueError:  # nothing would be left of it, of a very narrow one
            assert 0 in made[0] or min(width, height) < 5
            continue
        if name == "edges":
            assert made[0][0] * made[0][1] <= 2 * max(1, reckoned[0]) * max(1, reckoned[1])
        elif name == "perceiver":
            assert made == [reckoned]
        else:
            assert made[0] == reckoned, (width, height)


def test_heads_tell_the_size_that_pillow_finds():
    pick = random.Random(5)
    for n, kind in enumerate(image_files.FORMATS * 12):
        width, height = pick.randint(1, 300), pick.randint(1, 300)
        options = {"lossless": n % 2 == 0} if kind == "WEBP" else {"progressive": n % 2 == 0} if kind == "JPEG" else {}
        data = saved(picture(n, width, height), kind, **options)
        assert image_files.size_of(data) == (kind, width, height)


def test_damaged_files_never_raise_anything_else():
    """Bytes changed, cut out and doubled, in all formats."""
    pick = random.Random(6)
    files = [data for data in FILES.values() if len(data) < 6000]
    refused = 0
    for n in range(1500):
        data = bytearray(pick.choice(files))
        for _ in range(pick.randint(1, 6)):
            at = pick.randrange(min(len(data), 400) if n % 2 else len(data))
            match pick.randrange(3):
                case 0:
                    data[at] = pick.randrange(256)
                case 1:
                    del data[at : at + pick.randint(1, 40)]
                case _:
                    data[at:at] = data[at : at + pick.randint(1, 40)]
            data = data or bytearray(1)
        try:
            image = image_files.decoded(bytes(data), MOST_BYTES, MOST_PIXELS, lambda width, height: None)
        except errors.InvalidArgument:
            refused += 1
        else:
            assert image.mode == "RGB"
            assert image.width * image.height <= MOST_PIXELS
    assert 200 < refused < 1400


def test_an_environment_without_pillow_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    spec = base.EngineSpec("transformers_images", artifact_path=str(folder("seer")), task="classification")
    with pytest.raises(errors.EngineUnavailable, match=r"modelmora\[images\]"):
        ImagesEngine().load(spec, lambda *_: None)


def test_a_folder_without_an_image_processor_is_refused(folder, tmp_path):
    shutil.copytree(folder("seer"), tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    spec = base.EngineSpec("transformers_images", artifact_path=str(tmp_path / "m"), task="classification")
    with pytest.raises(errors.InvalidModelFiles):
        ImagesEngine().load(spec, lambda *_: None)


def test_a_head_that_the_files_do_not_have_is_not_made_up(folder, tmp_path):
    from transformers import ViTModel

    shutil.copytree(folder("seer"), tmp_path / "headless")
    ViTModel.from_pretrained(str(folder("seer"))).save_pretrained(tmp_path / "base")
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "headless" / "model.safetensors")
    spec = base.EngineSpec("transformers_images", artifact_path=str(tmp_path / "headless"), task="classification")
    with pytest.raises(errors.InvalidModelFiles, match="no weights for classifier"):
        ImagesEngine().load(spec, lambda *_: None)


def test_what_lifecycle_asks_to_see_whether_a_worker_lives_is_an_image(load, folder):
    probe = probe_of(VersionFacts("models/a/b/versions/1", "transformers_images", takes_images=True))
    for kind in KINDS:
        (found,) = scores(load(folder(kind)), [probe.data]).values()
        assert numpy.isfinite(found).all()
