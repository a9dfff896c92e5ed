"""Who keeps conversions of models, and for how long."""

from __future__ import annotations

import json
import os
from pathlib import Path

from modelmora_lifecycle.conversions import HALF_DONE_SECONDS, UNUSED_SECONDS, Conversions
from modelmora_lifecycle.domain import VersionFacts

NOW = 2_000_000_000.0


def conversion(root: Path, name: str, source: Path, used: float) -> Path:
    folder = root / "sha256-ab" / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"source": str(source)}))
    os.utime(folder / "manifest.json", (used, used))
    return folder


def half_done(root: Path, name: str, since: float) -> Path:
    folder = root / "sha256-ab" / f".{name}"
    folder.mkdir(parents=True)
    os.utime(folder, (since, since))
    return folder


def test_only_what_somebody_wants_is_kept(tmp_path: Path):
    root, source = tmp_path / "conversions", tmp_path / "model"
    source.mkdir()
    kept = [
        conversion(root, "used", source, NOW - UNUSED_SECONDS + 10),
        half_done(root, "at-work", NOW - HALF_DONE_SECONDS + 10),
    ]
    gone = [
        conversion(root, "of-a-deleted-version", tmp_path / "no-model", NOW),
        conversion(root, "of-old-libraries", source, NOW - UNUSED_SECONDS - 10),
        half_done(root, "of-a-killed-worker", NOW - HALF_DONE_SECONDS - 10),
    ]
    (root / "sha256-ab" / "broken").mkdir()
    assert set(Conversions(root).sweep(NOW)) == {*gone, root / "sha256-ab" / "broken"}
    assert set((root / "sha256-ab").iterdir()) == set(kept)


def test_the_folder_of_a_content_goes_with_its_last_conversion(tmp_path: Path):
    conversion(tmp_path, "one", tmp_path / "no-model", NOW)
    Conversions(tmp_path).sweep(NOW)
    assert list(tmp_path.iterdir()) == []
    assert Conversions(tmp_path / "not-there-yet").sweep(NOW) == []


def test_versions_with_the_same_files_share_conversions_and_a_candidate_has_its_versions():
    conversions = Conversions(Path("/data/conversions"))
    facts = VersionFacts("models/a/b/versions/1", "e", artifact_path="/data/x", artifact_digest="sha256:AB12")
    assert conversions.path_of(facts) == "/data/conversions/sha256-AB12"
    assert conversions.path_of(VersionFacts("models/a/b/versions/1#o/f", "e")) == ""
