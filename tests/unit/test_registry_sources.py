"""What sources may be called, sums as they are written, progress as it is paced, weights that end where they say."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import FailedPrecondition, InvalidModelFiles, ModelMoraError, UnsafeFile
from modelmora_registry import contents
from modelmora_registry.domain import ImportProgress, UrlSource, file_paths_problem
from modelmora_registry.exports import check_known, check_replaceable, superseded
from modelmora_registry.sources import parse_sums, render_sums
from modelmora_registry.web import Asked, refusal
from pydantic import ValidationError

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a/b/", "bucket", "a/b"),
        ("https://host:8443/a%20b", "host:8443", "a%20b"),
        ("http://[::1]:80/a", "[::1]:80", "a"),
    ],
)
def test_a_url_is_a_folder_of_a_host(url: str, host: str, path: str) -> None:
    source = UrlSource(url=url)
    assert (source.host, source.path) == (host, path)


@pytest.mark.parametrize(
    "url",
    [
        *("", "s3://", "https://", "ftp://h/a", "file:///etc", "gs://b/a", "S3://b/a", "https:/h/a", "//h/a", "h/a"),
        *("https://user@h/a", "https://user:secret@h/a", "https://h/a?token=x", "https://h/a#x", "https://h/a b"),
        *("https://h/../a", "s3://b/a/../c", "s3://b/./a", "https://h/a\x00b", "https://h/a\n", "https://h/\u202e"),
        "https://h/" + "a" * 2100,
    ],
)
def test_a_url_with_credentials_or_tricks_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        UrlSource(url=url)


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        (["a", "b/c"], None),
        (["a", "a"], "twice"),
        (["b", "b/c"], "file and a folder"),
        (["x", "b/c/d", "b/c"], "file and a folder"),
        (["../a"], "'..'"),
        (["/etc/passwd"], "relative"),
        (["C:/x"], "relative"),
        (["a//b"], "empty"),
        (["dev/NUL"], "device"),
        (["CON .txt"], "device"),
        (["com1.safetensors"], "device"),
        (["a\x00b"], "control"),
        (["a" * 300], "long"),
    ],
)
def test_files_that_cannot_lie_in_one_folder_are_told(paths: list[str], word: str | None) -> None:
    problem = file_paths_problem(paths)
    assert (problem is None) == (word is None)
    assert word is None or (problem and word in problem)
    if word:
        with pytest.raises(ValidationError):
            UrlSource(url="s3://b/a", files=tuple(paths))


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}\.json", fullmatch=True).filter(lambda path: file_paths_problem([path]) is None),
        st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    )
)
def test_sums_are_read_as_they_are_written(sums: dict[str, str]) -> None:
    assert parse_sums(render_sums(sums.items()).encode()) == sums


def test_sums_as_other_tools_write_them() -> None:
    text = f"{DIGEST}  a.json\n\n{DIGEST.upper()} *sub/b c.json\n{DIGEST}  ./d.json\n"
    digest = f"sha256:{DIGEST}"
    assert parse_sums(text.encode()) == {"a.json": digest, "sub/b c.json": digest, "d.json": digest}


@pytest.mark.parametrize(
    ("text", "cls"),
    [
        (f"{DIGEST} a", InvalidModelFiles),
        (f"{DIGEST[:-1]}  a", InvalidModelFiles),
        (f"\\{DIGEST}  a\\nb", InvalidModelFiles),
        (f"{DIGEST}  a\n{DIGEST}  a", InvalidModelFiles),
        ("<html>", InvalidModelFiles),
        (b"\xff\xfe", InvalidModelFiles),
        (f"{DIGEST}  ../a", UnsafeFile),
        (f"{DIGEST}  /etc/passwd", UnsafeFile),
        (f"{DIGEST}  a\n{DIGEST}  a/b", UnsafeFile),
    ],
)
def test_sums_that_are_none_are_refused(text: str | bytes, cls: type[ModelMoraError]) -> None:
    with pytest.raises(cls):
        parse_sums(text if isinstance(text, bytes) else text.encode())


def test_the_rate_is_that_of_the_last_seconds_and_tells_what_is_left() -> None:
    progress = ImportProgress(done_bytes=600, total_bytes=1000)
    assert progress.paced([], 5) == progress
    assert progress.paced([(5, 600)], 5) == progress
    paced = progress.paced([(3, 200), (4, 400)], 5)
    assert (paced.bytes_per_second, paced.remaining) == (200, timedelta(seconds=2))
    stalled = progress.paced([(3, 600)], 5)
    assert (stalled.bytes_per_second, stalled.remaining) == (0, None)
    again = ImportProgress(done_bytes=0, total_bytes=1000).paced([(3, 600)], 5)  # a torn file is begun anew
    assert (again.bytes_per_second, again.remaining) == (0, None)


def header(entries: object, weights: int = 0) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + b"w" * weights


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WHOLE = header({"a": tensor("U8", [1000], 0, 1000)}, 1000)


@pytest.mark.parametrize(
    "content",
    [
        WHOLE,
        header({"__metadata__": {"format": "pt"}}),
        header({"a": tensor("F32", [2, 3], 0, 24), "b": tensor("BF16", [], 24, 26)}, 26),
        header({"a": tensor("F4_OF_TOMORROW", [7], 0, 4)}, 4),
        header({"b": tensor("U8", [4], 4, 8), "a": tensor("U8", [4], 0, 4), "none": tensor("U8", [0], 4, 4)}, 8),
    ],
)
def test_whole_weights_are_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    contents.check(tmp_path / "f", "model.safetensors", allow_pickle=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"w" * 1000,
        WHOLE[:-1],
        WHOLE[:500],
        WHOLE[:20],
        WHOLE + b"x",
        header(b"[]"),
        header(b"{"),
        header(b"[" * 5000),
        header({"a": tensor("F32", [2, 3], 0, 23)}, 23),
        header({"a": tensor("F32", [-2, -3], 0, 24)}, 24),
        header({"a": tensor("F32", [1], 4, 0)}, 4),
        header({"a": tensor("F32", [1], 4, 8)}, 8),
        header({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, 12),
        header({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, 12),
        header({"a": {"dtype": "F32", "shape": [1]}}, 4),
        header({"a": 7}),
        (2**63).to_bytes(8, "little") + b"{}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + DIGEST.encode() + b"\nsize 90000000\n",
    ],
)
def test_weights_that_are_cut_off_or_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InvalidModelFiles) as raised:
        contents.check(tmp_path / "f", "sub/model.safetensors", allow_pickle=True)
    assert raised.value.metadata["file"] == "sub/model.safetensors"


def test_a_pointer_in_place_of_any_file_is_told_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    with pytest.raises(InvalidModelFiles, match="git lfs pull"):
        contents.check(tmp_path / "f", "tokenizer.json", allow_pickle=True)


@pytest.mark.parametrize("head", [b"\x80\x04\x95abc", b"PK\x03\x04abc"])
def test_a_pickle_under_another_name_is_refused_unless_allowed(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "f").write_bytes(head)
    contents.check(tmp_path / "f", "weights.dat", allow_pickle=True)
    with pytest.raises(UnsafeFile):
        contents.check(tmp_path / "f", "weights.dat", allow_pickle=False)


def test_only_files_of_exports_leave_a_repository() -> None:
    here = ("config.json", "model.safetensors")
    assert superseded("org/repo", set(), here, ()) == ()
    assert superseded("org/repo", {*here, "old.txt"}, here, ("config.json", "old.txt", "gone.txt")) == ("old.txt",)
    # What no import takes is none of our business, also once it stands beside safetensors.
    others = {".gitattributes", "pytorch_model.bin", "onnx/model.onnx", "code.py"}
    assert superseded("org/repo", {*others, "old.txt"}, here, ("old.txt",)) == ("old.txt",)
    with pytest.raises(FailedPrecondition, match=r"org/repo holds .*: mine\.txt; nothing"):
        superseded("org/repo", {*here, *others, "mine.txt", "old.txt"}, here, ("old.txt",))


def test_what_is_not_as_an_export_left_it_is_named() -> None:
    here = {"a": "sha256:1 b1", "b": "sha256:2"}
    exported, digests = ("a", "b", "gone", "old"), {"a": "sha256:0 b0", "gone": "sha256:9 b9"}
    for there in (
        {},
        {"a": "b1", "b": "sha256:2"},  # as it will be
        {"a": "sha256:0", "gone": "b9"},  # as an export left it
        {"b": "?", "old": "?"},  # of before digests were remembered
        {"other": "?"},  # neither replaced nor deleted
    ):
        check_known("org/repo", there, here, exported, digests)
    with pytest.raises(FailedPrecondition, match=r"org/repo: b came from no export; a, gone was changed there since"):
        check_known("org/repo", {"a": "b2", "b": "?", "gone": "?"}, here, ("a", "gone"), digests)


def test_only_what_an_export_put_there_makes_way(tmp_path: Path) -> None:
    target = tmp_path / "m"
    check_replaceable(target)
    target.mkdir()
    check_replaceable(target)
    (target / "sub").mkdir()
    (target / "sub" / "a.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"sub/a\.json"):
        check_replaceable(target)
    (target / "SHA256SUMS").write_text(f"{DIGEST}  sub/a.json\n")
    check_replaceable(target, overwrite=True)
    with pytest.raises(FailedPrecondition, match=r"sub/a\.json was changed"):
        check_replaceable(target)
    (target / "SHA256SUMS").write_text(f"{hashlib.sha256(b'{}').hexdigest()}  sub/a.json\n")
    check_replaceable(target)
    (target / "mine").write_text("")
    with pytest.raises(FailedPrecondition, match="mine"):
        check_replaceable(target, overwrite=True)
    with pytest.raises(FailedPrecondition, match="no folder"):
        check_replaceable(target / "mine")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("-3", 0), ("99999999", 3600), ("nan", None), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_a_delay_is_read_from_a_number_or_a_date(header: str, seconds: float | None) -> None:
    error = refusal(429, {"Retry-After": header}, Asked("x", "y"))
    assert (type(error).__name__, error.retry_after_seconds) == ("SourceUnavailable", seconds)
