"""The configuration: every setting, where its value comes from, and one line for everything that is wrong with it.

Flag > environment (`RETINUE_SECTION__KEY`) > `./retinue.yaml` > `$XDG_CONFIG_HOME/retinue/config.yaml` > default.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from retinue.errors import ConfigInvalid

if TYPE_CHECKING:
    from yaml.nodes import Node as YamlNode

LARGEST_FILE: Final = 256 * 1024
MOST_ALIASES: Final = 20
PREFIX: Final = "RETINUE_"
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
VARIABLE: Final = re.compile(r"\$\$|\$\{([^}]*)\}")
TRUE: Final = ("true", "yes", "on")
FALSE: Final = ("false", "no", "off")

Address = Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:]+\]|[^:\s]*):\d{1,5}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Workers = Annotated[int, Meta(ge=1, le=10_000)]
ServerUrl = Annotated[str, Meta(pattern=r"^https?://\S+$")]
StoreUrl = Annotated[str, Meta(pattern=r"^(sqlite|postgres|postgresql)://\S+$")]

_NOT_YET: Final = {"used": False}
_PAIRS: Final = re.compile(r"[^=,]+=[^,]*")


def _says(expected: str, **more: Any) -> dict[str, Any]:
    return {"expected": expected, **more}


class Tls(msgspec.Struct, frozen=True):
    """Encryption of what the server listens on."""

    enabled: Annotated[bool, Meta(description="Serve HTTPS.", extra=_NOT_YET)] = False
    cert_file: Annotated[str | None, Meta(description="The certificate, PEM.", extra=_NOT_YET)] = None
    key_file: Annotated[str | None, Meta(description="Its private key, PEM.", extra=_NOT_YET)] = None
    client_ca_file: Annotated[
        str | None, Meta(description="Ask clients for certificates of this authority, PEM.", extra=_NOT_YET)
    ] = None


class Auth(msgspec.Struct, frozen=True):
    """Who may ask the server for anything."""

    tokens: Annotated[
        list[Annotated[str, Meta(min_length=16)]],
        Meta(
            description="Admin tokens, each of 16 characters or more; several for rotation.",
            extra=_says("tokens of 16 characters or more", used=False, secret=True),
        ),
    ] = []
    require_auth: Annotated[
        bool, Meta(description="Ask for a token; `false` is only taken on loopback.", extra=_NOT_YET)
    ] = True


class Server(msgspec.Struct, frozen=True):
    """The coordinator's address."""

    enabled: Annotated[bool, Meta(description="Run a coordinator on this machine.", extra=_NOT_YET)] = True
    listen_addr: Annotated[
        Address,
        Meta(
            description="Where it listens. Without TLS and without a host it is 127.0.0.1.",
            extra=_says("an address such as 127.0.0.1:7331", used=False),
        ),
    ] = "127.0.0.1:7331"
    tls: Tls = Tls()
    auth: Auth = Auth()
    allowed_hosts: Annotated[
        list[str], Meta(description="Host names it answers to, beside its own address.", extra=_NOT_YET)
    ] = []
    secret_file: Annotated[
        str | None, Meta(description="The key file that several coordinators of a store share.", extra=_NOT_YET)
    ] = None
    metrics_listen: Annotated[
        Address | None,
        Meta(
            description="An address of its own for /metrics, without a token.",
            extra=_says("an address such as 127.0.0.1:9331", used=False),
        ),
    ] = None


class Registration(msgspec.Struct, frozen=True):
    """How the presence of nodes is noticed."""

    heartbeat_interval: Annotated[
        timedelta, Meta(description="How often a node says that it is well.", extra=_NOT_YET)
    ] = timedelta(seconds=30)
    offline_threshold: Annotated[
        timedelta, Meta(description="A node that is silent for longer is offline.", extra=_NOT_YET)
    ] = timedelta(seconds=90)


class Tasks(msgspec.Struct, frozen=True):
    """What a task gets that says nothing else."""

    default_priority: Annotated[
        Literal["critical", "high", "medium", "low"], Meta(description="The priority of a task that names none.")
    ] = "medium"
    claim_timeout: Annotated[
        timedelta, Meta(description="How long a claim made by REST lasts unless it is renewed.", extra=_NOT_YET)
    ] = timedelta(minutes=5)


class Coordination(msgspec.Struct, frozen=True):
    """This machine's place in a fleet."""

    enabled: Annotated[
        bool, Meta(description="`false`: this machine stays standalone, whatever else is set.", extra=_NOT_YET)
    ] = True
    server_url: Annotated[
        ServerUrl | None,
        Meta(
            description="The coordinator to join.",
            extra=_says("an address such as https://HOST:7331", used=False),
        ),
    ] = None
    token: Annotated[str | None, Meta(description="The token to join with.", extra={"used": False, "secret": True})] = (
        None
    )
    node_id: Annotated[
        Name | None,
        Meta(
            description="The name of this machine's node; its host name, if unset.",
            extra=_says("a name of letters, digits, '.', '_' and '-'"),
        ),
    ] = None
    labels: Annotated[dict[str, str], Meta(description="What this machine's node is, as key: value.")] = {}
    max_workers: Annotated[
        Workers | None,
        Meta(
            description="How many tasks run here at once; the number of cores, if unset.",
            extra=_says("a number from 1 to 10,000"),
        ),
    ] = None


class Store(msgspec.Struct, frozen=True):
    """Where the truth is."""

    url: Annotated[
        StoreUrl | None,
        Meta(
            description="`sqlite:///PATH` or `postgresql://USER@HOST/NAME`; SQLite in the data directory, if unset.",
            extra=_says("sqlite:///PATH or postgresql://USER@HOST/NAME", secret=True),
        ),
    ] = None


class Bus(msgspec.Struct, frozen=True):
    """What carries hints between coordinators."""

    url: Annotated[
        str | None,
        Meta(description="`nats://HOST:4222`; inside the process, if unset.", extra={"used": False, "secret": True}),
    ] = None


class Blobs(msgspec.Struct, frozen=True):
    """Where logs and artifacts are."""

    url: Annotated[
        str | None,
        Meta(
            description="`s3://BUCKET/PREFIX` or `file:///PATH`; the data directory, if unset.",
            extra={"used": False, "secret": True},
        ),
    ] = None


class Retention(msgspec.Struct, frozen=True):
    """How long records are kept."""

    events: Annotated[timedelta, Meta(description="How long events are kept.")] = timedelta(days=30)
    messages: Annotated[timedelta, Meta(description="How long messages are kept.", extra=_NOT_YET)] = timedelta(days=30)
    audit: Annotated[timedelta, Meta(description="How long the audit record is kept.", extra=_NOT_YET)] = timedelta(
        days=30
    )
    logs: Annotated[timedelta, Meta(description="How long the output of tasks is kept.")] = timedelta(days=30)
    tasks: Annotated[timedelta, Meta(description="How long tasks that have ended are kept.")] = timedelta(days=90)


class Config(msgspec.Struct, frozen=True):
    """Every setting, with its value."""

    data_dir: Annotated[
        str | None,
        Meta(description="Where Retinue keeps its data; `$XDG_STATE_HOME/retinue`, if unset. (`RETINUE_DATA_DIR`)"),
    ] = None
    server: Server = Server()
    registration: Registration = Registration()
    tasks: Tasks = Tasks()
    coordination: Coordination = Coordination()
    store: Store = Store()
    bus: Bus = Bus()
    blobs: Blobs = Blobs()
    retention: Retention = Retention()


class Setting(msgspec.Struct, frozen=True):
    """One setting: what it is called, what it may be, what it means. `used`: whether its part is built."""

    path: str
    kind: Any
    default: Any
    description: str
    expected: str
    used: bool = True
    secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.path.replace(".", "__").upper()


def _walk(section: type[msgspec.Struct], prefix: str = "") -> Iterator[Setting]:
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _walk(field.type, f"{prefix}{field.name}.")
            continue
        kind, notes = field.type.__origin__, field.type.__metadata__[-1]
        extra = dict(notes.extra or {})
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        yield Setting(
            path=prefix + field.name,
            kind=field.type,
            default=default,
            description=notes.description or "",
            expected=extra.get("expected") or _expected(kind),
            used=extra.get("used", True),
            secret=extra.get("secret", False),
        )


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    known = {bool: "true or false", timedelta: "a duration such as 30s, 5m, 1h or 30d", dict[str, str]: "key: value"}
    return known.get(kind, "a list" if get_origin(kind) is list else "a text")


SETTINGS: Final[Mapping[str, Setting]] = {setting.path: setting for setting in _walk(Config)}
SECTIONS: Final = frozenset(path.rpartition(".")[0] for path in SETTINGS if "." in path)


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, where each value came from, and which of them nothing reads yet."""

    config: Config
    origins: Mapping[str, str]
    files: Sequence[Path]

    @property
    def unused(self) -> list[str]:
        """Settings that somebody made although their part is not built yet."""
        return [path for path, origin in self.origins.items() if origin != "default" and not SETTINGS[path].used]

    def value(self, path: str) -> Any:
        """The value of a setting."""
        found: Any = self.config
        for part in path.split("."):
            found = getattr(found, part)
        return found


class Flag(msgspec.Struct, frozen=True):
    """A value from the command line, and the option that gave it."""

    option: str
    value: Any


def load(
    environment: Mapping[str, str],
    *,
    folder: Path,
    user_file: Path,
    only: Path | None = None,
    flags: Mapping[str, Flag] | None = None,
) -> Loaded:
    """Read `retinue.yaml` in `folder` and the user's file (or `only` one file), the environment and the flags.

    Raises:
        ConfigInvalid: one line for the first thing that is wrong; `details.problems` has a line for each.
    """
    reading = _Reading(environment)
    files = [path for path in ([only] if only else [user_file, folder / "retinue.yaml"]) if only or path.is_file()]
    for path in files:
        reading.file(path, str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path))
    reading.variables()
    for path_, flag in (flags or {}).items():
        reading.put(path_, flag.value, flag.option)
    reading.agree()
    if reading.problems:
        raise ConfigInvalid(reading.problems[0], problems=reading.problems)
    origins = {path: reading.origins.get(path, "default") for path in SETTINGS}
    return Loaded(_build(Config, reading.values), origins, files)


def _build(section: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            given[field.name] = _build(field.type, values, f"{path}.")
        elif path in values:
            given[field.name] = values[path]
    return section(**given)


class _Reading:
    """Gathers values, later ones over earlier ones, and everything that is wrong."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def put(self, path: str, value: Any, origin: str) -> None:
        self.values[path] = value
        self.origins[path] = origin

    def wrong(self, where: str, problem: str) -> None:
        self.problems.append(f"{where}: {problem}")

    # -- files -----------------------------------------------------------------------------------------------------

    def file(self, path: Path, name: str) -> None:
        import yaml

        try:
            if path.stat().st_size > LARGEST_FILE:
                self.wrong(name, f"the file is larger than {LARGEST_FILE // 1024} KiB")
                return
            root = _compose(path.read_text("utf-8"))
        except OSError as error:
            self.wrong(name, f"it cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            self.wrong(name, f"it is not UTF-8 text (byte {error.start})")
        except RecursionError:
            self.wrong(name, "it is nested too deeply")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            self.wrong(f"{name}{line}", f"not valid YAML: {error.problem or error.context}")
        except yaml.YAMLError as error:
            self.wrong(name, f"not valid YAML: {' '.join(str(error).split())}")
        else:
            if root is not None:
                self.section(root, "", name)

    def section(self, node: "YamlNode", prefix: str, name: str) -> None:
        from yaml.nodes import MappingNode

        where = f"{name}:{node.start_mark.line + 1}"
        if _is_null(node):
            return
        if not isinstance(node, MappingNode):
            known = ", ".join(_keys(prefix)[:3])
            self.wrong(where, f"{prefix.rstrip('.') or 'the file'}: keys such as {known} are expected here")
            return
        seen: set[str] = set()
        for key_node, value in node.value:
            line = f"{name}:{key_node.start_mark.line + 1}"
            key = str(key_node.value)
            path = prefix + key
            if key in seen:
                self.wrong(line, f"{path}: the key stands here twice")
            elif path in SECTIONS:
                self.section(value, f"{path}.", name)
            elif path in SETTINGS:
                self.setting(SETTINGS[path], value, name)
            else:
                self.wrong(line, f"{path}: unknown key{_meant(key, _keys(prefix))}")
            seen.add(key)

    def setting(self, setting: Setting, node: "YamlNode", name: str) -> None:
        from yaml.nodes import MappingNode, ScalarNode, SequenceNode

        where = f"{name}:{node.start_mark.line + 1}"
        raw: Any = None
        try:
            if _is_null(node):
                return
            if isinstance(node, ScalarNode):
                raw = self.expand(node.value)
            elif isinstance(node, SequenceNode) and all(isinstance(item, ScalarNode) for item in node.value):
                raw = [self.expand(item.value) for item in node.value]
            elif isinstance(node, MappingNode) and all(
                isinstance(part, ScalarNode) for kv in node.value for part in kv
            ):
                raw = {key.value: self.expand(value.value) for key, value in node.value}
            self.put(setting.path, _value(setting, raw), where)
        except ValueError as error:
            self.wrong(where, f"{setting.path}: {error}")

    def expand(self, text: str) -> str:
        """`${NAME}` by the environment's; `$$` is a plain dollar.

        Raises:
            ValueError: it is not set.
        """

        def by(found: re.Match[str]) -> str:
            name = found.group(1)
            if name is None:
                return "$"
            if name not in self.environment:
                raise ValueError(f"the environment variable {name} is not set")
            return self.environment[name]

        return VARIABLE.sub(by, text)

    # -- environment -----------------------------------------------------------------------------------------------

    def variables(self) -> None:
        known = {setting.variable: setting for setting in SETTINGS.values()}
        for name, text in self.environment.items():
            setting = known.get(name)
            if setting is not None:
                try:
                    self.put(setting.path, _value(setting, _listed(setting, text)), f"environment {name}")
                except ValueError as error:
                    self.wrong(f"environment {name}", f"{setting.path}: {error}")
            elif name.startswith(PREFIX) and "__" in name:
                self.wrong(f"environment {name}", f"no such setting{_meant(name, list(known))}")

    # -- what belongs together -------------------------------------------------------------------------------------

    def agree(self) -> None:
        host = str(self.values.get("server.listen_addr", "127.0.0.1:7331")).rpartition(":")[0]
        local = host in ("127.0.0.1", "[::1]", "localhost") or (not host and not self.values.get("server.tls.enabled"))
        if self.values.get("server.auth.require_auth") is False and not local:
            where = self.origins["server.auth.require_auth"]
            self.wrong(where, f"server.auth.require_auth: false is only taken on loopback, not on {host or 'every'}")


def documents(text: str) -> list[Any]:
    """The documents of a YAML text, safely, and with an end to aliases.

    Raises:
        yaml.YAMLError, RecursionError: it is none.
    """
    loader = _loader(text)
    found = []
    try:
        while loader.check_data():
            found.append(loader.get_data())
    finally:
        loader.dispose()
    return found


def _compose(text: str) -> "YamlNode | None":
    loader = _loader(text)
    try:
        node: YamlNode | None = loader.get_single_node()
    finally:
        loader.dispose()
    return node


def _loader(text: str) -> Any:
    import yaml
    from yaml.nodes import MappingNode

    class Loader(yaml.SafeLoader):
        """Safe, and with an end to aliases: a few lines of them can stand for gigabytes."""

        aliases = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                self.aliases += 1
                if self.aliases > MOST_ALIASES:
                    raise yaml.MarkedYAMLError(
                        problem=f"more than {MOST_ALIASES} aliases", problem_mark=self.get_mark()
                    )
            node = super().compose_node(parent, index)
            if isinstance(node, MappingNode) and any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                self.flatten_mapping(node)
            return node

    return Loader(text)


def _is_null(node: "YamlNode") -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _keys(prefix: str) -> list[str]:
    inside = (path.removeprefix(prefix) for path in SETTINGS if path.startswith(prefix))
    return list(dict.fromkeys(path.partition(".")[0] for path in inside))


def _meant(word: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}" if len(known) < 12 else ""


# -- values ------------------------------------------------------------------------------------------------------------


def _kind(setting: Setting) -> Any:
    """Its type without the notes."""
    return setting.kind.__origin__


def _listed(setting: Setting, text: str) -> Any:
    """A variable's text as the list or the mapping that is expected."""
    kind = _kind(setting)
    if get_origin(kind) is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(kind) is dict and (not text or all(_PAIRS.fullmatch(part) for part in text.split(","))):
        return dict(part.strip().split("=", 1) for part in text.split(",") if part)
    return text


def _value(setting: Setting, raw: Any) -> Any:
    """What a text, a list or a mapping of texts means where this is expected.

    Raises:
        ValueError: it is not what is expected.
    """
    kind = _kind(setting)
    try:
        if kind is timedelta:
            return duration(raw) if isinstance(raw, str) else _no(raw)
        if kind is bool:
            return _switch(raw)
        # The text counts, not what YAML makes of it: a label `no` or a token of digits stays what was written.
        return msgspec.convert(raw, setting.kind, strict=not (isinstance(raw, str) and kind == (Workers | None)))
    except (ValueError, msgspec.ValidationError):
        shown = "" if setting.secret else f", not {_shown(raw)}"
        raise ValueError(f"expected {setting.expected}{shown}") from None


def _shown(raw: Any) -> str:
    if isinstance(raw, str):
        return repr(raw if len(raw) <= 60 else raw[:57] + "…")
    return "a list" if isinstance(raw, list) else "a mapping" if isinstance(raw, dict) else "what stands here"


def _no(raw: Any) -> Any:
    raise ValueError(raw)


def _switch(raw: Any) -> bool:
    if isinstance(raw, str) and raw.lower() in (*TRUE, *FALSE):
        return raw.lower() in TRUE
    raise ValueError(raw)


def duration(text: str) -> timedelta:
    """`30s`, `5m`, `1h30m`, `30d` or `250ms` as a time span; more than nothing.

    Raises:
        ValueError: it is none.
    """
    compact = text.replace(" ", "")
    parts = DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ValueError("expected a duration such as 30s, 5m, 1h or 30d")
    try:
        span = timedelta(seconds=sum(float(number) * SECONDS[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError("this duration is too long") from None
    if not span:
        raise ValueError("expected a duration of more than nothing")
    return span


def as_text(value: Any) -> str:
    """A value as it may be written in the file."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        for unit in ("d", "h", "m"):
            if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
                return f"{int(seconds / SECONDS[unit])}{unit}"
        return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(value) or "(none)"
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items()) or "(none)"
    return str(value)


def masked(setting: Setting, value: Any) -> Any:
    """The value for people's eyes: a secret is hidden, of an address only the password."""
    if not setting.secret or not value:
        return value
    if setting.path.endswith(".url"):
        return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", value)
    return ["***"] * len(value) if isinstance(value, list) else "***"
