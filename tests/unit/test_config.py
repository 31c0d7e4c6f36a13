"""The configuration: where values come from, and one line for each thing that is wrong."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from retinue.config import SETTINGS, Flag, Loaded, as_text, duration, load, masked
from retinue.errors import ConfigInvalid

Read = Callable[..., Loaded]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Load `text` as ./retinue.yaml, `user` as the user's file, and an environment."""

    def reading(text: str = "", *, user: str = "", flags: dict[str, Flag] | None = None, **environment: str) -> Loaded:
        (tmp_path / "retinue.yaml").write_text(text)
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / "config.yaml").write_text(user)
        return load(environment, folder=tmp_path, user_file=tmp_path / "home" / "config.yaml", flags=flags)

    return reading


WRONG = {
    "unknown key": (
        "tasks:\n  claim_timout: 5m\n",
        "retinue.yaml:2: tasks.claim_timout: unknown key; did you mean claim_timeout?",
    ),
    "unknown section": ("servr: {}\n", "retinue.yaml:1: servr: unknown key; did you mean server?"),
    "nothing like it": (
        "blobs:\n  zzz: 1\n",
        "retinue.yaml:2: blobs.zzz: unknown key; known are url",
    ),
    "no duration": (
        "retention:\n  logs: 30\n",
        "retinue.yaml:2: retention.logs: expected a duration such as 30s, 5m, 1h or 30d, not '30'",
    ),
    "no choice": (
        "tasks: {default_priority: urgent}\n",
        "retinue.yaml:1: tasks.default_priority: expected one of critical, high, medium, low, not 'urgent'",
    ),
    "no number": (
        "coordination:\n  max_workers: many\n",
        "retinue.yaml:2: coordination.max_workers: expected a number from 1 to 10,000, not 'many'",
    ),
    "number out of range": (
        "coordination:\n  max_workers: 0\n",
        "retinue.yaml:2: coordination.max_workers: expected a number from 1 to 10,000, not '0'",
    ),
    "no switch": (
        "server: {enabled: maybe}\n",
        "retinue.yaml:1: server.enabled: expected true or false, not 'maybe'",
    ),
    "list for a text": (
        "coordination:\n  node_id: [a]\n",
        "retinue.yaml:2: coordination.node_id: expected a name of letters, digits, '.', '_' and '-', not a list",
    ),
    "path as a node's name": (
        "coordination:\n  node_id: ../evil\n",
        "retinue.yaml:2: coordination.node_id: expected a name of letters, digits, '.', '_' and '-', not '../evil'",
    ),
    "nested mapping for labels": (
        "coordination:\n  labels:\n    a: {b: c}\n",
        "retinue.yaml:3: coordination.labels: expected key: value, not what stands here",
    ),
    "unknown store": (
        "store:\n  url: mysql://x/y\n",
        "retinue.yaml:2: store.url: expected sqlite:///PATH or postgresql://USER@HOST/NAME",
    ),
    "short token, not shown": (
        "server:\n  auth:\n    tokens: [hunter2]\n",
        "retinue.yaml:3: server.auth.tokens: expected tokens of 16 characters or more",
    ),
    "variable that is not set": (
        "coordination:\n  token: ${NOT_SET}\n",
        "retinue.yaml:2: coordination.token: the environment variable NOT_SET is not set",
    ),
    "section that is a text": (
        "tasks: soon\n",
        "retinue.yaml:1: tasks: keys such as default_priority, claim_timeout are expected here",
    ),
    "file that is a list": (
        "- a\n",
        "retinue.yaml:1: the file: keys such as data_dir, server, registration are expected here",
    ),
    "key twice": (
        "tasks:\n  claim_timeout: 1m\n  claim_timeout: 2m\n",
        "retinue.yaml:3: tasks.claim_timeout: the key stands here twice",
    ),
    "broken YAML": ("tasks:\n  a: [1\n", "retinue.yaml:3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    "tab": ("tasks:\n\tx: 1\n", "retinue.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
    "two documents": ("a: 1\n---\nb: 2\n", "retinue.yaml:2: not valid YAML: but found another document"),
    "python object": (
        "tasks:\n  default_priority: !!python/object/apply:os.system [id]\n",
        "retinue.yaml:2: tasks.default_priority: expected one of critical, high, medium, low, not a list",
    ),
    "endless aliases": (
        "a: &a [x]\nb: [" + ", ".join(["*a"] * 30) + "]\n",
        "retinue.yaml:2: not valid YAML: more than 20 aliases",
    ),
    "nested without end": ("a: " + "[" * 5000 + "\n", "retinue.yaml: it is nested too deeply"),
    "no authentication for everyone": (
        "server:\n  listen_addr: 0.0.0.0:7331\n  auth: {require_auth: false}\n",
        "retinue.yaml:3: server.auth.require_auth: false is only taken on loopback, not on 0.0.0.0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_with_file_line_and_key(name: str, read: Read) -> None:
    text, expected = WRONG[name]

    with pytest.raises(ConfigInvalid) as raised:
        read(text)

    assert raised.value.message == expected


def test_every_mistake_is_told(read: Read) -> None:
    text = "tasks:\n  default_priority: x\nretention:\n  logs: y\n"

    with pytest.raises(ConfigInvalid) as raised:
        read(text, RETINUE_STORE__ULR="z")

    assert [line.partition(": ")[0] for line in raised.value.details["problems"]] == [
        "retinue.yaml:2",
        "retinue.yaml:4",
        "environment RETINUE_STORE__ULR",
    ]


def test_text_that_is_not_utf8_and_a_file_too_large_are_told(tmp_path: Path) -> None:
    (tmp_path / "retinue.yaml").write_bytes(b"tasks: \xff\n")
    large = tmp_path / "large.yaml"
    large.write_text("#" * 300_000)

    with pytest.raises(ConfigInvalid) as first:
        load({}, folder=tmp_path, user_file=tmp_path / "none")
    with pytest.raises(ConfigInvalid) as second:
        load({}, folder=tmp_path, user_file=tmp_path / "none", only=large)

    assert first.value.message == "retinue.yaml: it is not UTF-8 text (byte 7)"
    assert second.value.message == "large.yaml: the file is larger than 256 KiB"


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"

    with pytest.raises(ConfigInvalid) as raised:
        load({}, folder=Path("/"), user_file=tmp_path, only=missing)

    assert raised.value.message.endswith("none.yaml: it cannot be read: No such file or directory")


def test_flag_over_environment_over_folder_over_user_over_default(read: Read) -> None:
    user = "tasks: {default_priority: low, claim_timeout: 1m}\nretention: {logs: 1d, events: 2d}\n"
    folder = "tasks: {default_priority: high}\nretention: {events: 3d}\n"
    flags = {"coordination.max_workers": Flag("--workers", 7)}

    loaded = read(folder, user=user, flags=flags, RETINUE_RETENTION__EVENTS="4d", RETINUE_COORDINATION__MAX_WORKERS="3")

    found = {path: (as_text(loaded.value(path)), loaded.origins[path]) for path in loaded.origins}
    assert found["coordination.max_workers"] == ("7", "--workers")
    assert found["retention.events"] == ("4d", "environment RETINUE_RETENTION__EVENTS")
    assert found["tasks.default_priority"] == ("high", "retinue.yaml:1")
    assert found["tasks.claim_timeout"] == ("1m", "home/config.yaml:1")
    assert found["retention.tasks"] == ("90d", "default")


def test_the_text_counts_not_what_yaml_makes_of_it(read: Read) -> None:
    text = "coordination:\n  labels: {region: no, build: 0123, at: 2026-01-01}\n  token: 12345678901234567890\n"

    loaded = read(text)

    assert loaded.config.coordination.labels == {"region": "no", "build": "0123", "at": "2026-01-01"}
    assert loaded.config.coordination.token == "12345678901234567890"


def test_variables_stand_for_themselves_anywhere_in_a_text(read: Read) -> None:
    text = "coordination:\n  node_id: ${HOST}-${N}\n  max_workers: ${N}\n  labels: {cost: $$5, who: 'a${N}'}\n"

    loaded = read(text, HOST="box", N="4")

    assert loaded.config.coordination.node_id == "box-4"
    assert loaded.config.coordination.max_workers == 4
    assert loaded.config.coordination.labels == {"cost": "$5", "who": "a4"}


def test_an_environment_variable_sets_lists_and_mappings(read: Read) -> None:
    loaded = read(
        RETINUE_COORDINATION__LABELS="pool=gpu,os=linux",
        RETINUE_SERVER__ALLOWED_HOSTS="a.example, b.example",
        RETINUE_SERVER__TLS__ENABLED="yes",
        RETINUE_TASK="tsk_x",
        RETINUE_URL="http://x",
    )

    assert loaded.config.coordination.labels == {"pool": "gpu", "os": "linux"}
    assert loaded.config.server.allowed_hosts == ["a.example", "b.example"]
    assert loaded.config.server.tls.enabled


def test_settings_of_parts_that_are_not_built_are_checked_and_listed(read: Read) -> None:
    loaded = read(
        "server:\n  listen_addr: ':7331'\nbus:\n  url: nats://localhost:4222\ntasks: {default_priority: low}\n"
    )

    assert loaded.unused == ["server.listen_addr", "bus.url"]


def test_nothing_set_is_the_default_and_null_too(read: Read) -> None:
    loaded = read("tasks:\n  claim_timeout: ~\nserver:\n")

    assert set(loaded.origins.values()) == {"default"}
    assert loaded.config.tasks.claim_timeout == timedelta(minutes=5)


def test_every_setting_has_a_description_and_a_default_that_it_would_accept() -> None:
    lacking = [path for path, setting in SETTINGS.items() if not setting.description.rstrip(")").endswith((".", "`"))]

    assert lacking == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("30d", 2592000), ("250ms", 0.25), ("1.5h", 5400)]
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "0s", "1y", "1h 30", "5 parsecs", "9" * 400 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)


@given(some.integers(min_value=1, max_value=10**8))
def test_a_duration_survives_being_written(seconds: int) -> None:
    span = timedelta(seconds=seconds)

    assert duration(as_text(span)) == span


def test_secrets_are_hidden_and_addresses_keep_what_is_not_secret() -> None:
    shown: dict[str, Any] = {
        "server.auth.tokens": masked(SETTINGS["server.auth.tokens"], ["x" * 20, "y" * 20]),
        "coordination.token": masked(SETTINGS["coordination.token"], "secret"),
        "store.url": masked(SETTINGS["store.url"], "postgresql://me:secret@host/db"),
        "tasks.default_priority": masked(SETTINGS["tasks.default_priority"], "low"),
    }

    assert shown == {
        "server.auth.tokens": ["***", "***"],
        "coordination.token": "***",
        "store.url": "postgresql://me:***@host/db",
        "tasks.default_priority": "low",
    }
