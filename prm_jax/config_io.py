"""Configuration of plain dataclasses: preset < YAML file < command line, each read by the dataclass's types.

YAML's own typing is not used, since it reads ``1e-5`` as a string and ``on: no`` as {True: False}: the text of every
value is parsed as its field's declared type. Errors name file, line and key. Imports neither jax nor numpy.
"""

import dataclasses
import hashlib
import json
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml

from prm_jax.errors import UserError
from prm_jax.input_files import open_input
from prm_jax.option_values import NULL, closest, describe, read_value

T = TypeVar("T")
_MAX_BYTES = 1 << 20
_PLAIN_TAGS = ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")
_NODE_TAGS = {f"tag:yaml.org,2002:{name}" for name in _PLAIN_TAGS}


def load_yaml(path: str | pathlib.Path, default: T) -> T:
    """Reads a YAML file over a configuration.

    Args:
      path: the file; its keys are the fields' names, nested as the dataclasses are, or dotted ("prm.beta").
      default: an instance of the dataclass; fields that the file does not name keep their values.

    Raises:
      UserError: the file cannot be read, is not a plain YAML mapping (aliases are refused), repeats a key, names an
        unknown one (with a suggestion), or has a value that is not of its field's type. All problems are listed.
    """
    path = pathlib.Path(path)
    with open_input(path, "the configuration") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path} has more than {_MAX_BYTES} bytes, the most that a configuration may have")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, default, name=str(path))


def parse_yaml(text: str, default: T, *, name: str = "configuration") -> T:
    """As ``load_yaml`` on a text; `name` is the file's name in errors."""
    root = _compose(text, name)
    if root is None or _is_null(root):
        return default
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{name}:{_line(root)}: expected a mapping of options, found {_describe(root)}")
    reader = _Reader(leaf_types(type(default)), name)
    reader.read(root)
    if reader.problems:
        raise UserError("\n".join(reader.problems))
    return merge_options(default, replace(default, reader.values), reader.values)


def to_yaml(config: Any) -> str:
    """Writes a dataclass as YAML text that ``parse_yaml`` reads back as an equal one."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def flatten(config: Any) -> dict[str, Any]:
    """{"prm.beta": 0.05, ...}: the leaves of nested dataclasses under dotted names."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[field.name] = value
    return flat


def leaf_types(cls: type) -> dict[str, Any]:
    """{"prm.beta": float, ...}: the declared types under the names of ``flatten``."""
    hints = typing.get_type_hints(cls)
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            leaves |= {f"{field.name}.{key}": leaf for key, leaf in leaf_types(typing.cast(type, hint)).items()}
        else:
            leaves[field.name] = hint
    return leaves


def replace(config: T, values: Mapping[str, Any]) -> T:
    """A copy of a nested dataclass with the values of some dotted names changed."""
    grouped: dict[str, Any] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            grouped.setdefault(head, {})[rest] = value
        else:
            grouped[head] = value
    changes = {}
    for head, value in grouped.items():
        old = getattr(config, head)
        changes[head] = replace(old, value) if dataclasses.is_dataclass(old) else value
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class OptionsOf:
    """Marks a mapping as the options of what another field names: ``Annotated[dict[str, str], OptionsOf("name")]``.

    Attributes:
      field: the field of the same dataclass that holds the name.
    """

    field: str


def merge_options(default: T, config: T, given: Mapping[str, Any]) -> T:
    """Completes the mappings that are marked with ``OptionsOf``.

    Options that were given are merged into the default's where both configurations name the same thing; where they
    name different things, the default's options are dropped.

    Args:
      default: the configuration before.
      config: the configuration after, of the same class.
      given: dotted name -> the options that were given, for mappings that were.
    """
    before, after = flatten(default), flatten(config)
    merged = {}
    for name, owner in _option_mappings(type(config)).items():
        kept = before[name] if before[owner] == after[owner] else {}
        merged[name] = {**kept, **given.get(name, {})}
    return replace(config, merged) if merged else config


def _option_mappings(cls: type) -> dict[str, str]:
    """{"task.options": "task.name"}: mappings of options, and the fields that name what they belong to."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        hint, extras = hints[field.name], getattr(hints[field.name], "__metadata__", ())
        plain = get_args(hint)[0] if extras else hint
        if dataclasses.is_dataclass(plain):
            inner = _option_mappings(typing.cast(type, plain))
            found |= {f"{field.name}.{name}": f"{field.name}.{owner}" for name, owner in inner.items()}
        found.update((field.name, extra.field) for extra in extras if isinstance(extra, OptionsOf))
    return found


def config_hash(config: Any) -> str:
    """A digest of 16 hex digits, equal for equal configurations."""
    text = json.dumps({name: repr(value) for name, value in flatten(config).items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(saved: str, config: Any) -> dict[str, tuple[str, str]]:
    """Compares a saved configuration text with a configuration, whatever version wrote it.

    Args:
      saved: text written by ``to_yaml``, perhaps of a class with more or fewer fields.
      config: the current configuration.

    Returns:
      {"prm.beta": ("0.05", "0.1")}, old and new as text. A field that the text lacks is reported only when it
      differs from its default.
    """
    old = flat_text(yaml.safe_load(saved) or {})
    new = flat_text(_plain(config))
    defaults = flat_text(_plain(type(config)()))
    changed = {}
    for name in {**old, **new}:
        before = old.get(name, defaults.get(name, "(absent)"))
        after = new.get(name, "(absent)")
        if before != after:
            changed[name] = (before, after)
    return changed


def flat_text(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"prm.beta": "0.05", ...}: the leaves of a nested mapping as text, None as "null"."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_text(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else str(value)
    return flat


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Words that mean null here but not in YAML ("none") need quotes; line separators need escapes.
    style = "'" if text.lower() in NULL else None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise UserError(f"{self.name}:{mark.line + 1}: aliases (*name) are not supported")
        return super().compose_node(parent, index)


def _compose(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        problem = error.problem or str(error)
        if "\t" in "".join(text.splitlines()[line : line + 1]):  # none where the mark is the end of the file
            problem += " (YAML indents with spaces, not with tabs)"
        raise UserError(f"{name}:{line + 1}: {problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise UserError(f"{name}: nested too deeply") from error


@dataclasses.dataclass
class _Reader:
    """Walks a composed file against the declared types; collects values and problems."""

    kinds: Mapping[str, Any]
    name: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def read(self, node: yaml.MappingNode, prefix: str = "") -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(key_node, f"expected a name, found {_describe(key_node)}")
                continue
            key = prefix + key_node.value.replace("-", "_")
            if key in seen or key in self.values:
                self._add(key_node, f"{key} is given twice")
            else:
                self._read_entry(key_node, key, value_node)
            seen.add(key)

    def _read_entry(self, key_node: yaml.Node, key: str, node: yaml.Node) -> None:
        if key in self.kinds:
            try:
                self.values[key] = _read_node(node, self.kinds[key])
            except ValueError as error:
                self._add(key_node, f"{key}: {error}, found {_describe(node)}")
        elif not any(known.startswith(f"{key}.") for known in self.kinds):
            groups = dict.fromkeys(known.rpartition(".")[0] for known in self.kinds if "." in known)
            self._add(key_node, f"unknown option {key}{closest(key, [*self.kinds, *groups])}")
        elif isinstance(node, yaml.MappingNode):
            self.read(node, f"{key}.")
        elif not _is_null(node):
            self._add(key_node, f"{key} is a group of options, found {_describe(node)}")

    def _add(self, node: yaml.Node, problem: str) -> None:
        self.problems.append(f"{self.name}:{_line(node)}: {problem}")


def _read_node(node: yaml.Node, kind: Any) -> Any:
    origin, members = get_origin(kind), get_args(kind)
    if node.tag not in _NODE_TAGS:
        raise ValueError(f"the tag {node.tag} is not allowed")
    if origin in (Union, types.UnionType):
        if type(None) in members and _is_null(node):
            return None
        if not isinstance(node, yaml.ScalarNode):
            members = tuple(m for m in members if get_origin(m) in (list, tuple, dict))
            if len(members) != 1:
                raise ValueError(f"expected {describe(kind)}")
            return _read_node(node, members[0])
    if origin in (list, tuple):
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError(f"expected {describe(kind)}")
        return _read_sequence(node, origin, members)
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"expected {describe(kind)}")
        pairs = [(_read_node(k, members[0]), _read_node(v, members[1])) for k, v in node.value]
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"expected {describe(kind)}")
    return read_value(node.value, kind, quoted=node.style is not None)


def _read_sequence(node: yaml.SequenceNode, origin: type, members: tuple[Any, ...]) -> Any:
    fixed = origin is tuple and not (len(members) == 2 and members[1] is Ellipsis)
    if fixed and len(node.value) != len(members):
        raise ValueError(f"expected {len(members)} values")
    kinds = members if fixed else (members[0],) * len(node.value)
    return origin(_read_node(child, kind) for child, kind in zip(node.value, kinds, strict=True))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value.lower() in NULL


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        text = node.value if len(node.value) <= 40 else node.value[:37] + "..."
        return f"{text!r}" if text else "nothing"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_plain(key): _plain(leaf) for key, leaf in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(leaf) for leaf in value]
    return str(value) if isinstance(value, pathlib.Path) else value
