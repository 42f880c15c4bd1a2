"""What `apothic serve` takes for a change: of files that travel, since the deployment was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from apothic.cli.serve import Watch, _document


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "main.py", "__pycache__/main.pyc"):
        (folder / name).write_text("")
    return folder


def watching(*origins: Path) -> Watch:
    watch = Watch(list(origins))
    watch.begin()
    watch.end(list(origins))
    return watch


def test_files_that_are_new_changed_or_gone(package: Path) -> None:
    watch = watching(package)
    assert watch.changed() == []
    (package / "main.py").write_text("changed")
    (package / "page.html").write_text("new")
    assert watch.changed() == [package / "main.py", package / "page.html"]
    watch.begin()
    assert watch.changed() == []
    (package / "page.html").unlink()
    assert watch.changed() == [package / "page.html"]


def test_what_does_not_travel_is_not_looked_at(package: Path) -> None:
    watch = watching(package)
    (package / "__pycache__" / "main.pyc").write_text("longer")
    (package / ".env").write_text("secret")
    assert watch.changed() == []


def test_what_changes_while_it_is_deployed_counts_as_changed(package: Path) -> None:
    watch = Watch([package])
    watch.begin()
    (package / "main.py").write_text("changed")
    (package / "new.py").write_text("")
    watch.end([package])
    assert watch.changed() == [package / "main.py", package / "new.py"]


def test_what_else_travels_is_known_only_after_a_deployment(package: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("")
    watch = Watch([package])
    watch.begin()
    watch.end([package, other])
    assert watch.changed() == []
    other.write_text("changed")
    assert watch.changed() == [other]
    watch.begin()
    watch.end([package])  # it travels no more
    other.write_text("changed again")
    assert watch.changed() == []


def test_a_deployment_that_failed_leaves_what_is_watched(package: Path) -> None:
    watch = watching(package)
    watch.begin()
    watch.end([])
    (package / "main.py").write_text("mended")
    assert watch.changed() == [package / "main.py"]


def test_a_package_that_cannot_travel_is_deployed_once_to_hear_why(package: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("")
    watch = watching(package)
    (package / "link.py").symlink_to(tmp_path / "outside.py")
    assert watch.changed()
    watch.begin()
    watch.end([])
    assert watch.changed() == []
    (package / "link.py").unlink()
    assert watch.changed()


def test_a_single_file_that_is_away_for_a_moment_is_changed(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text("")
    watch = watching(file)
    file.unlink()
    assert watch.changed() == [file]
    watch.begin()
    file.write_text("back")
    assert watch.changed() == [file]


def test_what_a_file_prints_is_no_deployment() -> None:
    assert _document(["hello", '{"error": {"code": "user"}}', "7"]) == {"error": {"code": "user"}}
    assert _document(["hello"]) == {}
