"""The layout in docs/design.md names files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYOUT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Layout")[1].split("## ")[0]
PACKAGES = re.split(r"^\| `(\w+)` \| \|$", LAYOUT, flags=re.MULTILINE)


PARTS = list(zip(PACKAGES[1::2], PACKAGES[2::2], strict=True))


@pytest.mark.parametrize(("package", "rows"), PARTS, ids=PACKAGES[1::2])
def test_layout_names_modules_that_exist(package: str, rows: str) -> None:
    there = {path.name for path in (ROOT / package).rglob("*.py")}
    there |= {str(path.relative_to(ROOT / package)) for path in (ROOT / package).rglob("*.py")}
    there |= {f"{path.name}/" for path in (ROOT / package).iterdir() if path.is_dir()}
    named = re.findall(r"`([\w/]+(?:\.py|/))`", rows)
    assert len(named) > 20
    assert set(named) <= there
