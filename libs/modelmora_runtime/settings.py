"""Settings: sections of frozen values, read from flag > environment > YAML > default, each with its origin.

A section belongs to one context (`lifecycle`) or to the host (`platform`). In the environment a field is
`MODELMORA_<SECTION>_<FIELD>`; those of `platform` go without the section: `MODELMORA_DATA_DIR`. An empty environment
variable counts as absent. Whatever is wrong with a value is one InvalidArgument that names every field and its origin.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import re
import textwrap
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from modelmora.errors import FieldViolation, InvalidArgument
from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from modelmora_runtime import machine
from modelmora_runtime.status import violations

PLATFORM = "platform"
MIB = 1024 * 1024
MASK = "********"
FLAGS = (
    *("data_dir", "database_url", "host", "port", "metrics_port", "token_file"),
    *("insecure", "log_level", "log_format"),
)
"""Settings of the platform that have flags of their own; all others are given with `--set`."""


class Section(BaseModel):
    """Base of every settings section: frozen, unknown keys refused, NaN and infinities refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/modelmora`, by default `~/.local/share/modelmora`."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/share")
    return Path(base) / "modelmora"


AbsolutePath = Annotated[Path, AfterValidator(lambda path: Path(os.path.abspath(path.expanduser())))]
"""Children run elsewhere, so a path is made absolute where it is read."""

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class PlatformSettings(Section):
    """What every process of the platform needs, whichever contexts it opens."""

    data_dir: AbsolutePath = Field(
        default_factory=lambda: default_data_dir(os.environ),
        description="Folder of everything that is kept: database, artifacts, logs, tokens.",
    )
    database_url: str | None = Field(
        None,
        description="PostgreSQL 15 or newer to use instead of the embedded one: postgresql://user:password@host/db.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; beyond loopback only with tokens.")
    port: Port = Field(50051, description="gRPC port; 0 takes a free one.")
    metrics_port: Port = Field(
        9464, description="Port of Prometheus metrics at /metrics on loopback; 0 takes a free one."
    )
    grace_seconds: float = Field(30, ge=0, le=3600, description="How long calls in flight may take to finish on stop.")
    max_message_bytes: ByteSize = Field(
        ByteSize(64 * MIB), ge=64 * 1024, le=2**31 - 1, description="Largest gRPC message, each way."
    )
    max_in_flight_bytes: ByteSize = Field(
        ByteSize(0), ge=0, description="Bytes of requests and answers in flight in this process; 0 is 1/8 of memory."
    )
    default_deadline_seconds: Seconds = Field(60, description="Deadline of a call that brings none.")
    max_deadline_seconds: Seconds = Field(600, description="Longest deadline of a call; a longer one is cut to it.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is shown; logs/ has info as well."
    )
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON.")
    token_file: AbsolutePath | None = Field(
        None, description="File of token hashes; default <data_dir>/tokens.json where it exists."
    )
    insecure: bool = Field(False, description="Listen beyond loopback although there are no tokens. Everyone is admin.")
    peers: Mapping[str, str] = Field(
        default_factory=dict,
        description="Where the contexts are that this process does not open: {registry: host:port}. Lifecycle with a "
        "standby: {lifecycle: 'ipv4:127.0.0.1:50051,127.0.0.1:50052'}, in any order.",
    )
    service_token_file: AbsolutePath | None = Field(
        None, description="File with the token that this process shows to contexts in other processes."
    )
    otlp_endpoint: str | None = Field(None, description="OpenTelemetry collector, as in http://127.0.0.1:4317.")
    trace_sample_ratio: float = Field(0.1, ge=0, le=1, description="Share of calls whose trace is exported.")

    @property
    def in_flight_bytes(self) -> int:
        """The budget of bytes in flight with its default applied."""
        return int(self.max_in_flight_bytes) or machine.total_bytes() // 8


@dataclass(frozen=True)
class Shown:
    """One line of `modelmora config show --origin`; secrets are masked."""

    name: str
    value: str
    origin: str


class Loaded:
    """The sections that were asked for and where each value came from."""

    def __init__(self, sections: Mapping[str, Section], origins: Mapping[str, str]) -> None:
        self.sections = sections
        self.origins = origins
        """`{"lifecycle.memory_budget_bytes": "env MODELMORA_LIFECYCLE_MEMORY_BUDGET_BYTES"}`"""

    def __getitem__(self, name: str) -> Any:
        return self.sections[name]

    @property
    def platform(self) -> PlatformSettings:
        section = self.sections[PLATFORM]
        assert isinstance(section, PlatformSettings)
        return section

    def shown(self) -> Iterator[Shown]:
        """Every setting in the order of its section, values as text, secrets masked."""
        for name, section in self.sections.items():
            for field, info in type(section).model_fields.items():
                secret = isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("secret"))
                value = getattr(section, field)
                text = MASK if secret and value is not None else masked(value)
                yield Shown(f"{name}.{field}", text, self.origins[f"{name}.{field}"])


_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s]*?):([^@\s]*)@")
_SECRET_QUERY = re.compile(r"([?&](?:password|token|secret|sslpassword)=)[^&\s]*", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(password|secret|token|api_?key|credential)s?$", re.IGNORECASE)


def masked(value: object, name: str = "") -> str:
    """`value` as text without passwords: in URLs, in secret strings, under names that say secret."""
    if value is None:
        return ""
    if isinstance(value, SecretStr) or (_SECRET_NAME.search(name) and not isinstance(value, Path)):
        return MASK
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {masked(item, str(key))}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(masked(item) for item in value) + "]"
    text = _URL_PASSWORD.sub(rf"\1:{MASK}@", str(value))
    return _SECRET_QUERY.sub(rf"\1{MASK}", text)


def load(
    sections: Mapping[str, type[Section]],
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    elsewhere: Collection[str] = (),
) -> Loaded:
    """Reads `sections` (PLATFORM is added).

    `flags` are named `section.field`, or `field` for `platform`; None means not given. Sections of the file named in
    `elsewhere` belong to contexts that this process does not open, and are not looked at. Raises InvalidArgument with
    one field violation for each wrong value.
    """
    environ = os.environ if environ is None else environ
    wanted: dict[str, type[Section]] = {PLATFORM: PlatformSettings, **sections}
    wrong: list[FieldViolation] = []
    from_file = _read_file(config_file, wanted, elsewhere, wrong) if config_file is not None else {}
    from_flags = _read_flags(flags or {}, wanted)
    origins: dict[str, str] = {}
    made: dict[str, Section] = {}
    for name, model in wanted.items():
        values: dict[str, object] = {}
        if name == PLATFORM:
            values["data_dir"] = default_data_dir(environ)
        for field in model.model_fields:
            origins[f"{name}.{field}"] = "default"
        for field, value in from_file.get(name, {}).items():
            values[field] = value
            origins[f"{name}.{field}"] = f"file {config_file}"
        for field, info in model.model_fields.items():
            variable = variable_name(name, field)
            if environ.get(variable):
                origins[f"{name}.{field}"] = f"env {variable}"
                try:
                    values[field] = _from_text(environ[variable], info.annotation)
                except ValueError as error:
                    wrong.append(FieldViolation(f"{name}.{field}", f"{error} (env {variable})"))
        for field, value in from_flags.get(name, {}).items():
            values[field] = value
            named = name == PLATFORM and field in FLAGS
            origins[f"{name}.{field}"] = f"flag --{field.replace('_', '-')}" if named else f"--set {name}.{field}"
        try:
            made[name] = model.model_validate(values)
        except ValidationError as error:
            wrong += _with_origins(name, error, origins)
    if wrong:
        raise InvalidArgument(
            "settings: " + "; ".join(f"{violation.field}: {violation.description}" for violation in wrong), fields=wrong
        )
    return Loaded(made, origins)


def variable_name(section: str, field: str) -> str:
    """The environment variable of a setting."""
    parts = ["MODELMORA", *([] if section == PLATFORM else [section]), field]
    return "_".join(parts).upper()


def _with_origins(section: str, error: ValidationError, origins: Mapping[str, str]) -> Iterator[FieldViolation]:
    for violation in violations(error, section):
        field = ".".join(violation.field.split(".")[:2])
        origin = origins.get(field, "")
        if origin in ("", "default"):
            yield violation
        else:
            yield FieldViolation(violation.field, f"{violation.description} ({origin})")


def _read_flags(flags: Mapping[str, object], sections: Mapping[str, type[Section]]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for flag, value in flags.items():
        if value is None:
            continue
        section, _, field = flag.rpartition(".")
        section = section or PLATFORM
        if section not in sections or field not in sections[section].model_fields:
            raise InvalidArgument.at(f"{section}.{field}", "there is no such setting (--set)")
        if isinstance(value, str):
            try:
                value = _from_text(value, sections[section].model_fields[field].annotation)
            except ValueError as error:
                raise InvalidArgument.at(f"{section}.{field}", f"{error} (flag)") from error
        found.setdefault(section, {})[field] = value
    return found


def _read_file(
    path: Path, sections: Mapping[str, type[Section]], elsewhere: Collection[str], wrong: list[FieldViolation]
) -> dict[str, dict[str, object]]:
    """The values by section and field; what is no section goes to `wrong`, to be told with everything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument.at("config_file", f"{path} cannot be read: {error}") from error
    content = _parse_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidArgument.at("config_file", f"{path} must be a mapping of sections")
    found: dict[str, dict[str, object]] = {}
    for name, values in content.items():
        if name in elsewhere and name not in sections:
            continue
        if name not in sections:
            known = ", ".join(sorted({*sections, *elsewhere}))
            wrong.append(FieldViolation(str(name), f"there is no such section, only {known} (file {path})"))
        elif values is None:
            continue
        elif not isinstance(values, dict):
            wrong.append(FieldViolation(str(name), f"must be a mapping of settings (file {path})"))
        else:
            found[name] = {str(field): value for field, value in values.items()}
    return found


def _parse_yaml(text: str, where: str) -> Any:
    import yaml  # 27 ms that a start without a file need not pay

    class Loader(yaml.SafeLoader):
        """YAML lets the last of two equal keys win in silence; here they are refused."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError) as error:
        raise InvalidArgument.at("config_file", f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _from_text(text: str, annotation: object) -> object:
    """Text from the environment or a flag: lists, mappings and models are written as YAML (or JSON)."""
    if not _is_compound(annotation):
        return text
    try:
        return _parse_yaml(text, "the value")
    except InvalidArgument as error:
        raise ValueError(error.fields[0].description) from error


def _is_compound(annotation: object) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_compound(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return any(_is_compound(part) for part in get_args(annotation))
    kind = origin or annotation
    return isinstance(kind, type) and (
        issubclass(kind, BaseModel) or (issubclass(kind, Collection) and not issubclass(kind, str | bytes))
    )


def example(sections: Mapping[str, type[Section]]) -> str:
    """A YAML file with every setting at its default and what it means; everything is commented out."""
    lines = [
        "# Every setting of ModelMora with its default. Generated by scripts/config-example; a test compares.",
        "# A flag wins over the environment, the environment over this file, this file over the default.",
        "# To set something, take away the # right before its name.",
    ]
    shown: dict[str, type[Section]] = {PLATFORM: PlatformSettings, **sections}
    for name, model in shown.items():
        lines += ["", f"{name}:"]
        told = _docstrings(model)
        for field, info in model.model_fields.items():
            about = info.description or told.get(field, "")
            lines += [f"  # {line}" for line in about.splitlines()]
            lines += [f"  #{field}: {_example_value(name, field, info)}"]
    return "\n".join(lines) + "\n"


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands in a string below each field."""
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]).body
    found = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[field.target.id] = inspect.cleandoc(text)
    return found


def _example_value(section: str, field: str, info: FieldInfo) -> str:
    if (section, field) == (PLATFORM, "data_dir"):
        return "~/.local/share/modelmora"
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        return MASK
    if info.default_factory is not None and value:
        return "found out at the start"
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, default=str)
