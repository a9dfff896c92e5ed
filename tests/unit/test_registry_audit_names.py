"""What the audit record calls the things that calls were about."""

from __future__ import annotations

import pytest
from modelmora_registry.audit_store import resource_name

UID = "01a1ffc2-b4f2-75e7-9b89-832eaa8ebdca"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("acme/mini", "models/acme/mini"),
        ("models/acme/mini", "models/acme/mini"),
        ("acme/mini@1.0.0", "models/acme/mini/versions/1.0.0"),
        ("models/acme/mini/versions/1.0.0", "models/acme/mini/versions/1.0.0"),
        (f"models/acme/mini/links/{UID}", f"models/acme/mini/links/{UID}"),
        ("modelLocks/lock-03236e2f5d2b4604", "modelLocks/lock-03236e2f5d2b4604"),
        (f"jobs/{UID}", f"jobs/{UID}"),
        (f"replicas/{UID}", f"replicas/{UID}"),
        (f"tunings/{UID}", f"tunings/{UID}"),
        ("jobs/mini", "models/jobs/mini"),
        ("vm", "vm"),
        ("", ""),
    ],
)
def test_one_name_for_each_thing(text: str, name: str) -> None:
    assert resource_name(text) == name
