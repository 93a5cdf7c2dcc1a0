"""Configuration: YAML read by the declared types, errors with file, line and key, exact round trips."""

import dataclasses
import math
import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax import config_io
from prm_jax.errors import UserError
from prm_jax.prime import PRESETS, Options


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3
    name: Literal["adamw", "sgd"] = "adamw"
    clip: float | None = None
    warmup_steps: int = 0


@dataclass(frozen=True)
class Config:
    optim: Optimizer = field(default_factory=Optimizer)
    on: bool = True
    title: str = ""
    note: str | None = None
    steps: int = 10
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    words: list[str] = field(default_factory=list)
    table: dict[str, str] = field(default_factory=dict)
    path: pathlib.Path | None = None


def _read(text: str, default: Config | None = None) -> Config:
    return config_io.parse_yaml(text, default or Config(), name="c.yaml")


def _error(text: str) -> str:
    with pytest.raises(UserError) as caught:
        _read(text)
    return str(caught.value)


def test_values_are_read_by_their_declared_types():
    config = _read(
        """
        optim: {lr: 1e-5, name: sgd, clip: 1, warmup-steps: 1_000}
        on: no
        title: 1e-5
        note: no
        sizes: [1, 2]
        pair: [3, 4]
        words: [on, 5, null]
        table: {min_operands: 3, yes: no}
        path: a/b
        """
    )
    assert config.optim == Optimizer(lr=1e-5, name="sgd", clip=1.0, warmup_steps=1000)
    assert config.on is False and config.title == "1e-5" and config.note == "no"
    assert config.sizes == (1, 2) and config.pair == (3, "4") and config.words == ["on", "5", "null"]
    assert config.table == {"min_operands": "3", "yes": "no"} and config.path == pathlib.Path("a/b")


def test_a_key_that_yaml_would_take_for_true():
    assert _read("on: no").on is False and _read("on: TRUE").on is True
    assert _read("title: off").title == "off" and _read("title: 012").title == "012"


def test_null_empty_and_quoted():
    assert _read("note: null").note is None and _read("note:").note is None and _read("note: ~").note is None
    assert _read('note: "null"').note == "null" and _read("note: ''").note == ""
    assert _read("title: ''").title == "" and _read("title:").title == ""
    assert _read("optim: {clip: none}", Config(optim=Optimizer(clip=2.0))).optim.clip is None
    assert _read("optim:\nsteps: 3").steps == 3


def test_floats():
    for text, value in (
        ("1", 1.0),
        ("1e-5", 1e-5),
        (".5", 0.5),
        ("-1E+3", -1e3),
        (".inf", math.inf),
        ("inf", math.inf),
    ):
        assert _read(f"optim: {{lr: {text}}}").optim.lr == value
    assert math.isnan(_read("optim: {lr: .nan}").optim.lr)


def test_dotted_keys_empty_files_and_byte_order_marks(tmp_path):
    assert _read("optim.lr: 2\nsteps: 3") == Config(optim=Optimizer(lr=2.0), steps=3)
    for text in ("", "   \n", "# nothing\n", "---\n"):
        assert _read(text) == Config()
    path = tmp_path / "ü b.yaml"
    path.write_bytes(b"\xef\xbb\xbfsteps: 4\r\n")
    assert config_io.load_yaml(path, Config()).steps == 4


def test_the_default_is_what_the_file_does_not_say():
    default = Config(optim=Optimizer(lr=5.0, warmup_steps=7), title="kept", table={"a": "b"})
    assert _read("optim: {lr: 1}", default) == dataclasses.replace(default, optim=Optimizer(lr=1.0, warmup_steps=7))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps: 3\noptm: {lr: 1}", ["c.yaml:2: unknown option optm; did you mean optim?"]),
        ("optim:\n  lrr: 1", ["c.yaml:2: unknown option optim.lrr; did you mean optim.lr"]),
        ("lr: 1", ["c.yaml:1: unknown option lr; did you mean optim.lr"]),
        ("optim: {ws: 1}", ["did you mean optim.warmup_steps"]),
        ("optim: {lr: fast}", ["c.yaml:1: optim.lr: expected a number, found 'fast'"]),
        ("steps: 1.5", ["steps: expected a whole number, found '1.5'"]),
        ("steps: 1e3", ["steps: expected a whole number"]),
        ("steps: [1]", ["steps: expected a whole number, found a list"]),
        ("steps:", ["steps: expected a whole number, found nothing"]),
        ("on: maybe", ["on: expected true or false, found 'maybe'"]),
        ("optim: {name: adam}", ["expected one of adamw, sgd; did you mean adamw?, found 'adam'"]),
        ("optim: {clip: x}", ["expected a number or none"]),
        ("optim: 3", ["c.yaml:1: optim is a group of options, found '3'"]),
        ("sizes: 3", ["sizes: expected a list, each a whole number, found '3'"]),
        ("sizes: [1, b]", ["sizes: expected a whole number"]),
        ("pair: [1]", ["pair: expected 2 values"]),
        ("table: [a]", ["table: expected a mapping"]),
        ("table: {a: 1, a: 2}", ["a key is given twice"]),
        ("- a\n- b", ["c.yaml:1: expected a mapping of options, found a list"]),
        ("just text", ["expected a mapping of options, found 'just text'"]),
        ("steps: 1\nsteps: 2", ["c.yaml:2: steps is given twice"]),
        ("optim: {lr: 1}\noptim: {clip: 2}", ["c.yaml:2: optim is given twice"]),
        ("optim: {lr: 1}\noptim.lr: 2", ["c.yaml:2: optim.lr is given twice"]),
        ("[1]: 2", ["expected a name, found a list"]),
        ("optim:\n\tlr: 1", ["c.yaml:2", "spaces, not with tabs"]),
        ("steps: [1", ["c.yaml:1"]),
        ("steps: [1\n", ["c.yaml:2"]),
        ("steps: 1\n---\nsteps: 2", ["c.yaml:2", "document"]),
        ("a: &x [1]\nb: *x", ["c.yaml:2: aliases (*name) are not supported"]),
        ("title: !!python/object/apply:os.system [ls]", ["not allowed"]),
        ("title: !custom x", ["not allowed"]),
    ],
)
def test_errors_name_file_line_key_and_cure(text, parts):
    message = _error(text)
    assert all(part in message for part in parts), message


def test_all_problems_are_named_at_once():
    assert _error("steps: x\nfoo: 1\non: 3").count("c.yaml:") == 3


def test_bombs_and_unreadable_files(tmp_path):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert "aliases" in _error(bomb)
    assert "nested too deeply" in _error("a: " + "[" * 2000)
    path = tmp_path / "c.yaml"
    for content, part in ((b"\xff\xfe\x00", "not UTF-8"), (b"a" * (2 << 20), "bytes"), (b"title: a\x00b", "c.yaml")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=part):
            config_io.load_yaml(path, Config())
    with pytest.raises(UserError, match="cannot read the configuration"):
        config_io.load_yaml(tmp_path / "absent.yaml", Config())
    with pytest.raises(UserError, match="cannot read the configuration"):
        config_io.load_yaml(tmp_path, Config())


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\ud800"), max_size=12)
_FLOAT = st.floats(allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Config,
        optim=st.builds(
            Optimizer,
            lr=_FLOAT,
            name=st.sampled_from(["adamw", "sgd"]),
            clip=st.none() | _FLOAT,
            warmup_steps=st.integers(),
        ),
        on=st.booleans(),
        title=_TEXT
        | st.sampled_from(["null", "~", "1e-5", "on", "", " x ", "a: b", "#", "0x1f", "2024-01-01", "<<", "="]),
        note=st.none() | _TEXT | st.sampled_from(["null", "none", "~", ""]),
        steps=st.integers(),
        sizes=st.lists(st.integers(), max_size=3).map(tuple),
        words=st.lists(_TEXT, max_size=3),
        table=st.dictionaries(_TEXT, _TEXT, max_size=3),
    )
)
def test_round_trip_is_exact(config):
    assert _read(config_io.to_yaml(config)) == config


def test_presets_round_trip():
    for options in PRESETS.values():
        assert config_io.parse_yaml(config_io.to_yaml(options), Options()) == options


@dataclass(frozen=True)
class Named:
    name: str = "carry"
    options: Annotated[dict[str, str], config_io.OptionsOf("name")] = field(default_factory=dict)


@dataclass(frozen=True)
class Nested:
    task: Named = field(default_factory=Named)
    steps: int = 1


def test_options_are_merged_for_the_same_name_and_dropped_for_another():
    default = Nested(Named("carry", {"a": "1", "b": "2"}))

    def options(text):
        return config_io.parse_yaml(text, default).task.options

    assert options("task: {options: {b: 3, c: 4}}") == {"a": "1", "b": "3", "c": "4"}
    assert options("task: {name: carry, options: {b: 3}}") == {"a": "1", "b": "3"}
    assert options("task: {name: other}") == {}
    assert options("task: {name: other, options: {c: 4}}") == {"c": "4"}
    assert options("steps: 3") == {"a": "1", "b": "2"}


def test_flatten_replace_and_hash():
    config = Config(optim=Optimizer(lr=2.0), table={"a": "b"})
    flat = config_io.flatten(config)
    assert flat["optim.lr"] == 2.0 and flat["table"] == {"a": "b"} and list(flat) == list(config_io.leaf_types(Config))
    assert config_io.replace(Config(), flat) == config
    assert config_io.config_hash(config) == config_io.config_hash(config_io.replace(config, {}))
    assert config_io.config_hash(config) != config_io.config_hash(config_io.replace(config, {"optim.clip": 1.0}))


def test_differences():
    saved = config_io.to_yaml(Config(steps=3, table={"a": "1", "b": "2"}))
    assert config_io.differences(saved, Config(steps=3, table={"a": "1", "b": "2"})) == {}
    changed = config_io.differences(saved, Config(optim=Optimizer(clip=1.0), table={"a": "1"}))
    assert changed == {"optim.clip": ("null", "1.0"), "steps": ("3", "10"), "table.b": ("2", "(absent)")}
    assert config_io.differences("gone: 1\n", Config()) == {"gone": ("1", "(absent)")}
    assert config_io.differences("", Config(steps=11)) == {"steps": ("10", "11")}
