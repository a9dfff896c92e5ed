"""What a processor makes of an image, and which it is not given: for real pictures, for traps, for any size at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora_worker.engines.image_sizes import Resizing, most_resized, resizing_of, too_large

DECODED = 32_000_000
EDGES = st.one_of(st.integers(1, 400), st.integers(1, 50_000_000))
LENGTHS = st.integers(1, 1024)
RESIZINGS = st.one_of(
    st.just(Resizing()),
    st.builds(Resizing, fixed=st.tuples(LENGTHS, LENGTHS)),
    st.builds(Resizing, shortest=LENGTHS, multiple=st.sampled_from([1, 32])),
    st.builds(Resizing, shortest=LENGTHS, longest=LENGTHS),
)
SHORTEST = Resizing(shortest=224)
FIXED = Resizing(fixed=(224, 224))


@given(RESIZINGS, EDGES, EDGES)
def test_nothing_over_the_bounds_is_made_of_what_is_let_through(resizing: Resizing, width: int, height: int) -> None:
    most = most_resized(resizing)
    if not too_large(resizing, width, height, most, DECODED):
        new_width, new_height = resizing.resized(width, height)
        assert new_width * new_height <= most
        assert new_width * height <= max(most, DECODED), "as Pillow makes it in between"


@given(RESIZINGS, st.integers(1, 4000), st.integers(1, 16))
def test_no_image_of_up_to_16_to_1_is_refused_for_its_shape(resizing: Resizing, short: int, ratio: int) -> None:
    if resizing == Resizing() or resizing.multiple > 1:
        return
    for width, height in ((short * ratio, short), (short, short * ratio)):
        if width * height <= DECODED // 4:
            assert not too_large(resizing, width, height, most_resized(resizing), DECODED)


@pytest.mark.parametrize("edge", [224, 256, 384])
@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 500), (500, 10_000), (8000, 4000), (4032, 3024), (20_000, 1000), (1, 1), (3, 40)]
)
def test_photographs_and_panoramas_go_through(edge: int, width: int, height: int) -> None:
    for resizing in (Resizing(shortest=edge), Resizing(fixed=(edge, edge))):
        assert not too_large(resizing, width, height, most_resized(resizing), DECODED)


@pytest.mark.parametrize(
    ("resizing", "width", "height", "words"),
    [
        (SHORTEST, 300_000, 1, "makes 67200000 × 224; at most 4000000"),
        (SHORTEST, 1, 300_000, "makes 224 × 67200000; at most 4000000"),
        (SHORTEST, 80, 1, "makes 17920 × 224; at most 4000000"),
        (SHORTEST, 79, 1, ""),
        (Resizing(shortest=224, longest=448), 300_000, 1, ""),
        (FIXED, 300_000, 1, ""),
        (FIXED, 1, 300_000, "makes 224 × 300000; at most 32000000"),
        (FIXED, 1, 100_000, ""),
        (Resizing(), 2001, 2000, "makes 2001 × 2000; at most 4000000"),
        (Resizing(), 2000, 2000, ""),
        (None, 3201, 100, "over 32 times"),
        (None, 100, 3201, "over 32 times"),
        (None, 3200, 100, ""),
    ],
)
def test_what_would_become_huge_is_named(resizing: Resizing | None, width: int, height: int, words: str) -> None:
    told = too_large(resizing, width, height, most_resized(resizing), DECODED)
    assert words in told
    assert bool(told) == bool(words)
    assert (f"{width} × {height}" in told) == bool(words)


@pytest.mark.parametrize(
    ("kind", "settings", "wanted"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 8, "width": 9}}, Resizing((9, 8))),
        ("ViTImageProcessor", {"size": {"shortest_edge": 8}}, Resizing(shortest=8)),
        ("CLIPImageProcessorFast", {"size": {"shortest_edge": 8, "longest_edge": 9}}, Resizing(shortest=8, longest=9)),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}, Resizing(shortest=73)),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, Resizing((384, 384))),
        ("ConvNextImageProcessorPil", {"size": {"height": 8, "width": 8}, "crop_pct": 0.875}, None),
        ("PoolFormerImageProcessorPil", {"size": {"shortest_edge": 90}, "crop_pct": 0.9}, Resizing(shortest=100)),
        ("LevitImageProcessorPil", {"size": {"shortest_edge": 224}}, Resizing(shortest=256)),
        ("TextNetImageProcessorPil", {"size": {"shortest_edge": 9}, "size_divisor": 32}, Resizing(None, 9, 0, 32)),
        ("DonutImageProcessorPil", {"size": {"height": 30, "width": 20}}, Resizing(shortest=20)),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 8}, "do_resize": False}, Resizing()),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 8}, "do_resize": None}, Resizing()),
        ("BitImageProcessorPil", {"size": {"longest_edge": 8}}, None),
        ("Siglip2ImageProcessorPil", {"size": {}}, None),
        ("SomebodysImageProcessor", {"size": {"height": 8, "width": 8}}, None),
    ],
)
def test_each_kind_resizes_as_its_settings_say(kind: str, settings: dict[str, object], wanted: Resizing | None) -> None:
    assert resizing_of(kind, {"do_resize": True, **settings}) == wanted


def test_a_model_with_large_inputs_may_be_given_as_long_images_as_others() -> None:
    assert most_resized(Resizing(shortest=1024)) == 16 * 1024 * 1024
    assert most_resized(SHORTEST) == most_resized(None) == most_resized(Resizing()) == 4_000_000
