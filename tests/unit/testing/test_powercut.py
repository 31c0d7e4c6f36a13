"""What a power cut may do to a file, and what it may not."""

from pathlib import Path
from random import Random

from retinue.testing.powercut import DATABASE, SECTOR, Disk, Event

WAL = f"{DATABASE}-wal"


def outcomes(tmp_path: Path, *events: Event) -> set[bytes | None]:
    """All that is found in the log's place after many cuts."""
    disk = Disk()
    for event in events:
        disk.follow(event)
    found: set[bytes | None] = set()
    for seed in range(300):
        (tmp_path / WAL).unlink(missing_ok=True)
        disk.cut(Random(seed), tmp_path)
        found.add((tmp_path / WAL).read_bytes() if (tmp_path / WAL).exists() else None)
    return found


def test_what_was_synced_survives_every_cut(tmp_path: Path) -> None:
    found = outcomes(tmp_path, Event("open", WAL), Event("write", WAL, 0, b"a" * SECTOR), Event("sync", WAL))

    assert found == {b"a" * SECTOR}


def test_a_file_that_was_never_synced_may_be_absent_empty_or_there(tmp_path: Path) -> None:
    found = outcomes(tmp_path, Event("open", WAL), Event("write", WAL, 0, b"a" * SECTOR))

    assert found == {None, b"", b"a" * SECTOR}


def test_a_write_may_be_kept_lost_or_torn_into_sectors(tmp_path: Path) -> None:
    before = [Event("open", WAL), Event("write", WAL, 0, b"a" * SECTOR * 2), Event("sync", WAL)]

    found = outcomes(tmp_path, *before, Event("write", WAL, 0, b"b" * SECTOR * 2))

    assert found == {(one * SECTOR + two * SECTOR) for one in (b"a", b"b") for two in (b"a", b"b")}


def test_a_later_write_may_survive_an_earlier_one_and_leaves_a_hole(tmp_path: Path) -> None:
    before = [Event("open", WAL), Event("sync", WAL)]

    found = outcomes(
        tmp_path, *before, Event("write", WAL, 0, b"a" * SECTOR), Event("write", WAL, SECTOR, b"b" * SECTOR)
    )

    assert found == {b"", b"a" * SECTOR, bytes(SECTOR) + b"b" * SECTOR, b"a" * SECTOR + b"b" * SECTOR}


def test_a_deleted_file_may_come_back_until_the_directory_is_synced(tmp_path: Path) -> None:
    before = [Event("open", WAL), Event("sync", WAL)]

    lazily = outcomes(tmp_path, *before, Event("delete", WAL))
    surely = outcomes(tmp_path, *before, Event("delete", WAL, 1))

    assert (lazily, surely) == ({None, b""}, {None})


def test_a_truncation_may_be_lost(tmp_path: Path) -> None:
    before = [Event("open", WAL), Event("write", WAL, 0, b"abcd"), Event("sync", WAL)]

    found = outcomes(tmp_path, *before, Event("truncate", WAL, 2))

    assert found == {b"abcd", b"ab"}
