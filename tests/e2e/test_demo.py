"""`retinue demo` on repositories as they come: awkward names, no history, cut-off history, uncommitted work."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(60)]

KEY = "AKIA" + "ABCDEFGHIJKLMNOP"  # in two halves, as this file is looked at too
PLAIN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "NO_COLOR": "1"}
IDENTITY = ["-c", "user.name=A Person", "-c", "user.email=person@example.org", "-c", "init.defaultBranch=main"]


def git(repo: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(repo), *IDENTITY, *arguments]
    return subprocess.run(command, check=True, capture_output=True, env=os.environ | PLAIN).stdout


def run(*arguments: str | Path, where: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from retinue.cli.main import main; main()", "demo", *map(str, arguments)]
    environment = os.environ | PLAIN | {"HOME": str(where), "TMPDIR": str(where)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=where, check=False)


def demo(repo: Path, where: Path) -> dict[str, Any]:
    """The document it prints; it must have completed."""
    ran = run(repo, "--json", "--data-dir", where / "data", where=where)
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


def fingerprint(repo: Path) -> dict[str, str]:
    """Every file of a folder, git's own among them."""
    return {
        os.fsencode(path).hex(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repo.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    made = tmp_path / "a repository"
    made.mkdir()
    git(made, "init", "-q")
    return made


@pytest.fixture
def where(tmp_path: Path) -> Path:
    made = tmp_path / "machine"
    made.mkdir()
    return made


def test_every_kind_of_finding_is_found_whatever_the_files_are_called(repo: Path, where: Path) -> None:
    names = ["plain.py", "with space.py", "new\nline.py", os.fsdecode(b"\xff\xfe.py"), "[red].py"]
    for name in names:
        (repo / name).write_text("x = 1\n# TODO: mend this\n")
    (repo / "broken.py").write_text("def (:\n")
    (repo / "settings.txt").write_text(f"\nkey = {KEY}\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "all of it")
    (repo / "plain.py").write_text("x = 2\n# TODO: mend this\n# FIXME: and this\n")
    before = fingerprint(repo)

    document = demo(repo, where)

    found = document["found"]
    size = sum(path.stat().st_size for path in repo.iterdir() if path.is_file())
    assert found["count"]["total"] == {"files": 7, "lines": 14, "size": size}
    assert [one["file"] for one in found["python"]["found"]] == ["broken.py"]
    assert found["secrets"]["found"] == [{"file": "settings.txt", "line": 2, "kind": "AWS access key"}]
    assert {note["file"] for note in found["notes"]["found"]} == {
        "plain.py", "with space.py", '"new\\nline.py"', '"\\377\\376.py"', "[red].py",
    }  # fmt: skip
    assert {note["author"] for note in found["ages"]["found"]} == {"A Person", "not committed"}
    assert found["history"]["commits"] == 1
    assert found["history"]["authors"]["A Person"]["commits"] == 1
    assert document["repository"]["uncommitted"] == 1
    assert document["tasks"]["failed"] == []
    assert KEY not in json.dumps(document)
    assert fingerprint(repo) == before


def test_a_repository_without_commits_is_looked_at_as_files(repo: Path, where: Path) -> None:
    (repo / "first.py").write_text("print(1)\n")

    document = demo(repo, where)

    assert document["found"]["count"]["total"]["files"] == 1
    assert document["found"]["history"] is None
    assert document["remarks"][0] == "no commits yet: only the files are looked at"


def test_an_empty_repository_gets_a_report_too(repo: Path, where: Path) -> None:
    document = demo(repo, where)

    assert document["remarks"] == ["no commits yet: only the files are looked at", "no files in the work tree"]
    assert document["tasks"]["by_status"] == {"completed": 1}


def test_a_shallow_clone_does_not_count_its_last_commit_as_a_change_of_every_file(repo: Path, where: Path) -> None:
    for number in range(3):
        (repo / "file").write_text(f"{number}\n")
        (repo / f"file{number}").write_text("one\n")
        git(repo, "add", "-A")
        git(repo, "commit", "-qm", str(number))
    git(repo, "clone", "-q", "--depth=2", repo.as_uri(), str(where / "clone"))

    document = demo(where / "clone", where)

    assert document["found"]["history"]["commits"] == 2
    assert document["found"]["history"]["files"] == {"file": 1, "file2": 1}
    assert "a shallow clone: its history is cut off" in document["remarks"]


def test_a_bare_repository_is_looked_at_as_history(repo: Path, where: Path) -> None:
    git(repo, "commit", "-qm", "nothing", "--allow-empty")
    git(repo, "clone", "-q", "--bare", str(repo), str(where / "bare"))

    document = demo(where / "bare", where)

    assert document["found"]["history"]["commits"] == 1
    assert document["found"]["count"] is None


def test_many_files_are_sampled_and_it_says_so(repo: Path, where: Path) -> None:
    for number in range(4100):
        (repo / f"file{number}").write_text("one\n")

    document = demo(repo, where)

    assert document["found"]["count"]["total"]["files"] == 4000
    assert "4,000 of 4,100 files are looked at, evenly spread" in document["remarks"]


def test_people_get_a_report_on_standard_output_and_progress_as_lines_on_standard_error(
    repo: Path, where: Path
) -> None:
    (repo / "first.py").write_text("print(1)\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "one")

    ran = run(where=repo)

    assert ran.returncode == 0
    assert "1 file, 1 line, 9 B" in ran.stdout
    assert "1 commit by 1 author" in ran.stdout
    assert "add it all up: 1 of 1 tasks" in ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr


def test_a_folder_outside_any_repository_is_refused_in_one_sentence(where: Path) -> None:
    ran = run(where / "nothing here", where=where)
    outside = run(where=where)

    assert "is no folder" in ran.stderr
    assert "is in no git repository; name one: retinue demo PATH" in outside.stderr
    assert ran.returncode == outside.returncode == 2
    assert "Traceback" not in ran.stderr + outside.stderr
    assert list(where.iterdir()) == []
