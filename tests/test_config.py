"""The configuration: what may stand in it, who wins, and what makes results comparable."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.config import STAGES, Config, ConfigError, load
from gemel_ray.setting import allowed, described, former
from gemel_ray.stages.detect import Detect

REPOSITORY = Path(__file__).parents[1] / "ray_config.yaml"


def loaded(text: str = "", *overrides: str, carried: dict[str, Any] | None = None) -> Config:
    """The configuration of a file of this text, under a workspace's settings and --set options."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ray_config.yaml"
        file.write_text(text)
        return load(file, carried or {}, overrides)


def settings_of(config: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as (a.b, value)."""
    for f in fields(config):
        value, name = getattr(config, f.name), f"{where}{f.name}"
        if is_dataclass(value):
            yield from settings_of(value, f"{name}.")
        else:
            yield name, value


def changed(config: Any, name: str, value: Any) -> Any:
    section, _, setting = name.partition(".")
    within = changed(getattr(config, section), setting, value) if setting else value
    return replace(config, **{section: within})


ALL = dict(settings_of(Config()))


# Names


@pytest.mark.parametrize(("text", "message"), [
    ("generat: {beams: 3}", r"there is no setting generat; did you mean generate\?"),
    ("generate: {beam: 3}", r"there is no setting generate\.beam; did you mean generate\.beams\?"),
    ("retrieve: {demonstration: 3}", r"retrieve\.demonstration; did you mean retrieve\.demonstrations\?"),
    ("models: {langauge: x}", r"no setting models\.langauge; did you mean models\.language\?"),
    ("assemble: {zzzz: 1}", r"no setting assemble\.zzzz; there are images"),
    ("1: 2", r"there is no setting 1; there are models, input, detect"),
    ("offline: {segments: [{stages: [detect], worker: 3}]}",
     r"no setting offline\.segments\[0\]\.worker; did you mean .*\.workers\?"),
])  # fmt: skip
def test_an_unknown_key_names_the_nearest_right_one(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(text)


@pytest.mark.parametrize("name", [n for n in ALL if len(n.partition(".")[2]) > 3])
def test_a_letter_left_out_of_any_key_is_found_again(name: str) -> None:
    section, _, setting = name.partition(".")
    with pytest.raises(
        ConfigError, match=rf"no setting {section}\.{setting[:-2]}{setting[-1]}; did you mean"
    ):
        loaded("", f"{section}.{setting[:-2]}{setting[-1]}=1")


# Former names


def test_every_former_name_is_accepted_with_a_hint_wherever_it_comes_from() -> None:
    defaults, moved = Config(), 0
    for section in fields(Config):
        values = getattr(defaults, section.name)
        for f in fields(values) if is_dataclass(values) else ():
            if not (old := former(f)):
                continue
            moved += 1
            hints: list[str] = []
            value = json.dumps(getattr(values, f.name))
            config = load(None, {}, [f"{section.name}.{old}={value}"], hints.append)
            assert config == defaults
            assert hints == [
                f"{section.name}.{old} is now called {f.name}; the next version no longer knows the old name"
            ]
    assert moved > 15
    assert loaded("retrieve: {words: 0.5}").retrieve.word_bonus == 0.5
    assert loaded("", carried={"retrieve": {"itself": True}}).retrieve.allow_itself is True


def test_a_former_name_wins_and_loses_as_todays_does() -> None:
    assert loaded("retrieve: {word_bonus: 0.5}", "retrieve.words=0.1").retrieve.word_bonus == 0.1
    assert loaded("retrieve: {words: 0.5}", "retrieve.word_bonus=0.1").retrieve.word_bonus == 0.1
    with pytest.raises(ConfigError, match=r"word_bonus and words are one setting: leave out words"):
        loaded("retrieve: {words: 0.5, word_bonus: 0.1}")


def test_every_setting_is_described() -> None:
    """In the one place that ray_config.yaml and the docs are written from."""
    assert [name for name, f in described_fields(Config) if not described(f)] == []


def described_fields(kind: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that has a value of its own, of all sections and of segments' elements."""
    hints = get_type_hints(kind)
    for f in fields(kind):
        inner = next((k for k in (hints[f.name], *get_args(hints[f.name])) if is_dataclass(k)), None)
        if inner is None:
            yield f"{where}{f.name}", f
        else:
            yield from described_fields(inner, f"{where}{f.name}.")


# Types

WRONG = [
    ("generate.beams", "many", "must be a whole number, not 'many'"),
    ("generate.beams", 2.5, r"must be a whole number, not 2\.5"),
    ("generate.beams", True, "must be a whole number, not True"),
    ("generate.beams", None, "must be a whole number, not None"),
    ("generate.beams", [1], r"must be a whole number, not \[1\]"),
    ("generate.length_penalty", "much", "must be a number, not 'much'"),
    ("generate.length_penalty", False, "must be a number, not False"),
    ("assemble.images", 1, "must be true or false, not 1"),
    ("assemble.images", "yes please", "must be true or false"),
    ("models.language", 7, "must be text, not 7"),
    ("generate.score", "papre", "cannot be 'papre'; did you mean paper"),
    ("retrieve.by", 3, "cannot be 3; there are mention, image, fused, random"),
    ("offline.segments", "detect", "must be a list, not 'detect'"),
    ("offline.segments", ["detect"], r"offline\.segments\[0\] must hold settings, not 'detect'"),
    ("online.segments", [{"stages": ["detect"], "min_replicas": 2}], "min_replicas is more than max_rep"),
    ("online.queue", 3, "online.documents times online.api.max_replicas is at most online.queue"),
    ("offline.segments", [{}, {}], r"offline\.segments must hold detect, .*; detect, .* are missing"),
    ("input.max_characters", "many", "must be a whole number"),
    ("generate", 5, "generate must hold settings, not 5"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_type_names_the_setting(name: str, value: Any, message: str) -> None:
    nested: Any = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(yaml.safe_dump(nested))
    assert name in str(caught.value)


# Ranges

NOT_A_NUMBER, ENDLESS = float("nan"), float("inf")
# Of every setting that takes less than all of its type: what it must not take.
NONSENSE: dict[str, list[Any]] = {
    "models.language": [""], "models.clip": ["", " "], "models.mention_encoder": [""], "models.mapper": [""],
    "input.min_characters": [-1], "input.max_characters": [-1],
    "detect.min_characters": [0], "detect.link_probability": [-0.1, 1.1], "detect.tag_probability": [-0.1, 2],
    "detect.max_mentions": [0], "detect.device": ["gpu", ""], "detect.batch": [0],
    "encode.device": ["graphics card", "cuda:x"], "encode.batch": [0], "encode.threads": [0, -1],
    "encode.cache": [-1], "encode.max_megapixels": [0], "encode.max_megabytes": [-1.0],
    "encode.fetch_seconds": [0],
    "encode.min_side": [-1], "encode.max_aspect": [0.5, -1], "encode.downloads": [0],
    "encode.downloads_per_host": [0],
    "encode.host_interval": [-1],
    "retrieve.demonstrations": [-1], "retrieve.shared_sets": [-1], "retrieve.nearest": [-1],
    "retrieve.ranking": [-1], "generate.ranking": [-0.1, 2], "bank.ranker": [-1], "bank.descriptions": [-1],
    "retrieve.mention_weight": [-1], "retrieve.image_weight": [-1], "retrieve.word_bonus": [-0.1],
    "generate.beams": [0, -5], "generate.exact_requests": [0], "generate.length_penalty": [-1, ENDLESS],
    "generate.columns": [0], "generate.arena": [0, 1.0, NOT_A_NUMBER],
    "generate.prior_weight": [-0.1], "generate.neighbour_weight": [1.5, -0.5, NOT_A_NUMBER],
    "generate.sure": [7, -1], "generate.precision": [95, -1], "generate.judged": [0, 1.5],
    "generate.rerank": [1, 27, -1], "generate.choice_weight": [-0.1, 2], "retrieve.retrieved": [-1],
    "generate.nil_threshold": [7, -1], "generate.length": [0], "generate.tensor_parallel": [0],
    "generate.cache_gib": [0, -1], "generate.gpu_memory": [7, 0, NOT_A_NUMBER], "generate.block": [0],
    "generate.batch_tokens": [0], "generate.sequences": [0],
    "bank.names": [-1], "bank.longest_name": [0, -1], "bank.longest_example": [0, 5],
    "vectors.address": ["localhost", "http://host:6333", "s3://bucket/x"], "vectors.exact_below": [-1],
    "vectors.wait": [-1], "vectors.grpc": [-1, 65_536], "vectors.shards": [-1], "vectors.replicas": [-1],
    "offline.address": ["everywhere", "http://host:1"], "offline.stall_minutes": [0, -1],
    "offline.engines_per_gpu": [-1, 9],
    "offline.segments.workers": [0], "offline.segments.cpus": [-1], "offline.segments.gpus": [1.5, -1],
    "offline.segments.threads": [-1], "offline.segments.batch": [0], "offline.segments.overlap": [0],
    "online.address": [""], "online.host": ["", "http://here"], "online.port": [0, 65_536],
    "online.segments.min_replicas": [0], "online.segments.max_replicas": [0],
    "online.segments.cpus": [-1], "online.segments.gpus": [2.5], "online.segments.threads": [-1],
    "online.api.min_replicas": [0], "online.api.max_replicas": [0], "online.api.ongoing": [0],
    "online.segments.batch": [0], "online.segments.ongoing": [0], "online.segments.surge": [-1, 2],
    "online.queue": [0], "online.wait": [0, ENDLESS], "online.deadline": [0], "online.documents": [0],
    "online.mentions": [0], "online.characters": [0], "online.megabytes": [0],
    "online.image_hosts": [["http://here/x"], [""]],
    "online.hosts": [["http://here"]],
    "train.prefix": [0], "train.hidden": [-1], "train.ridge": [-1], "train.epochs": [-1], "train.batch": [0],
    "train.learning_rate": [0, -1e-3], "train.warmup": [2, -0.1], "train.weight_decay": [-1],
    "train.clip_norm": [0], "train.keep": [-1], "train.evaluate_every": [0], "train.decode_every": [-1],
    "train.dev_mentions": [0],
    "train.patience": [0], "train.seed": [-1, 2**32], "train.workers": [0], "train.cpus": [-1],
    "train.gpus": [1.5], "train.device": ["quantum"], "train.tokens": [0],
}  # fmt: skip


def declared(kind: Any = Config, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every setting, those of segments too, as (a.b, its type, its dataclass field)."""
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        inner = typing.get_args(hints[f.name])
        section = next((k for k in (hints[f.name], *inner) if is_dataclass(k)), None)
        if section is None:
            yield f"{where}{f.name}", hints[f.name], f
        else:
            yield from declared(section, f"{where}{f.name}.")


@pytest.mark.parametrize(("name", "kind", "field"), list(declared()))
def test_every_number_has_a_range_and_every_range_its_nonsense(name: str, kind: Any, field: Any) -> None:
    takes = allowed(field)
    assert takes or kind not in (int, float), (
        f"{name} is a number without a range: declare it as setting(DEFAULT, at_least=..., unit=...), see "
        "gemel_ray/setting.py, and add what it must not take to NONSENSE in tests/test_config.py"
    )
    assert not takes or name in NONSENSE, f"add to NONSENSE in tests/test_config.py what {name} must not take"
    default = field.default if isinstance(field.default, tuple) else [field.default]
    assert not takes or all(value in takes for value in default)


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, some in NONSENSE.items() for v in some])
def test_nonsense_is_refused_with_the_setting_the_value_and_what_is_allowed(name: str, value: Any) -> None:
    kind, field = next((kind, f) for n, kind, f in declared() if n == name)
    section, _, setting = name.rpartition(".")
    nested: Any = {setting: value}
    if section.endswith(".segments"):
        name = f"{section}[0].{setting}"
        nested = [{"stages": list(STAGES)} | nested]
    for part in reversed(section.split(".")):
        nested = {part: nested}
    with pytest.raises(ConfigError) as caught:
        loaded(yaml.safe_dump(nested))
    one = value[0] if isinstance(value, list) else kind(value)
    assert str(caught.value).startswith(name)
    assert f"cannot be {one!r}: it takes" in str(caught.value)
    assert str(allowed(field)) in str(caught.value)


@pytest.mark.parametrize("way", ["offline", "online"])
@pytest.mark.parametrize(("cut", "message"), [
    ([STAGES[:4]], "generate is missing"),
    ([STAGES[:2]], "retrieve, assemble, generate are missing"),
    ([STAGES[:2], STAGES[1:]], "encode is there 2 times"),
    ([STAGES[2:], STAGES[:2]], "not retrieve, assemble, generate, detect, encode"),
    ([STAGES[:4], ("generat",)], r"there is no stage generat: did you mean generate\?"),
    ([STAGES, ()], r"segments\[1\] has no stages"),
    ([], "are missing"),
])  # fmt: skip
def test_segments_are_the_whole_line_in_its_order(way: str, cut: list[Any], message: str) -> None:
    segments = [{"stages": list(stages)} for stages in cut]
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(yaml.safe_dump({way: {"segments": segments}}))
    assert f"{way}.segments" in str(caught.value)


def test_a_whole_number_is_a_number() -> None:
    config = loaded("generate: {length_penalty: 1}")
    assert config.generate.length_penalty == 1.0
    assert isinstance(config.generate.length_penalty, float)


@pytest.mark.parametrize(("spelled", "value"), [("1.0e-3", 1e-3), ("0.5", 0.5), ("1e-3", 1e-3), ("2E4", 2e4)])
def test_numbers_are_read_as_people_write_them(spelled: str, value: float) -> None:
    """YAML 1.1 takes 1e-3 for text; nobody who writes it into a number's place means text."""
    assert loaded(f"train: {{learning_rate: {spelled}}}").train.learning_rate == value
    assert loaded("", f"train.learning_rate={spelled}").train.learning_rate == value


@pytest.mark.parametrize(("override", "message"), [
    ("generate.nil_threshold=0.5", None), ("generate.precision=0.9", None),
    ("generate.prior_weight=0.5", "cannot be had both"),
    ("generate.batch_tokens=100", r"batch_tokens is at least generate\.sequences"),
    ("retrieve.nearest=17", r"retrieve\.nearest is at most retrieve\.demonstrations"),
])  # fmt: skip
def test_a_value_that_a_stage_refuses_is_a_configuration_error(override: str, message: str | None) -> None:
    if message is None:
        loaded("", override)
        setting = override.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"generate: {setting} compares candidates"):
            loaded("", override, "generate.beams=1")
        return
    with pytest.raises(ConfigError, match=message):
        loaded("", override)


# The file


@pytest.mark.parametrize("text", ["", "\n", "# nothing but a comment\n", "{}", "generate:\n"])
def test_without_a_file_and_overrides_all_is_as_by_default(text: str) -> None:
    assert loaded(text) == Config() == load(None, {}, [])


@pytest.mark.parametrize("text", ["- a\n- b\n", "text", "5"])
def test_a_file_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="settings"):
        loaded(text)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\ta: 1", "a: !!python/object:os.system x"])
def test_a_file_that_is_no_yaml_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*ray_config\.yaml"):
        loaded(text)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml", {}, [])


def test_a_file_of_other_bytes_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load(tmp_path / "c.yaml", {}, [])


def test_segments_of_a_file_take_the_place_of_the_default() -> None:
    front, back = "[detect, encode]", "[retrieve, assemble, generate]"
    text = f"offline: {{segments: [{{stages: {front}, gpus: 1}}, {{stages: {back}, workers: 3}}]}}"
    first, second = loaded(text).offline.segments
    assert (first.stages, first.gpus, first.workers) == (("detect", "encode"), 1.0, 1)
    assert (second.stages, second.workers) == (("retrieve", "assemble", "generate"), 3)


# --set


@pytest.mark.parametrize(("override", "value"), [
    ("generate.beams=3", 3), ("generate.score=paper", "paper"), ("generate.length_penalty=0.5", 0.5),
    ("assemble.images=false", False), ("models.language=facebook/opt-6.7b", "facebook/opt-6.7b"),
    ("models.language=/a b=c.d", "/a b=c.d"), ("vectors.address=http://host:6333/x", "http://host:6333/x"),
    ("vectors.address=", ""), ("offline.address=ray://host:10001", "ray://host:10001"),
])  # fmt: skip
def test_an_override_on_the_command_line_sets_its_value(override: str, value: Any) -> None:
    name = override.partition("=")[0]
    assert dict(settings_of(loaded("", override)))[name] == value


@pytest.mark.parametrize("override", ["generate.beams", "=3", "", "generate.beams 3"])
def test_set_in_another_form_is_refused_with_the_right_form(override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set takes a\.b=value"):
        loaded("", override)


@pytest.mark.parametrize("override", [
    "generate.beams=[3", "generate.beams={", "generate..beams=3", ".generate=3", "generate.=3", "beams=3",
    "generate.beams.more=3", "generate=3", "models.language=a: b: c", "generate.score=@x",
    "offline.segments.0=3",
])  # fmt: skip
def test_nonsense_in_set_is_a_configuration_error(override: str) -> None:
    with pytest.raises(ConfigError):
        loaded("", override)


def test_set_takes_a_list() -> None:
    config = loaded("", f"offline.segments=[{{stages: [{', '.join(STAGES)}], gpus: 0.5}}]")
    assert [(s.stages, s.gpus) for s in config.offline.segments] == [(STAGES, 0.5)]


def test_the_last_set_wins_and_the_others_stay() -> None:
    config = loaded("", "generate.beams=3", "generate.score=paper", "generate.beams=4")
    assert (config.generate.beams, config.generate.score) == (4, "paper")


def test_the_workspace_wins_over_the_file_and_set_over_both() -> None:
    text = "generate: {beams: 2, score: paper, length: 100}\nretrieve: {demonstrations: 1}"
    carried = {"generate": {"beams": 3, "score": "tree"}, "models": {"end_of_name": "eos"}}
    config = loaded(text, "generate.beams=4", carried=carried)
    assert config.generate.length == 100  # the file, nobody else speaks of it
    assert config.generate.score == "tree"  # the workspace over the file
    assert config.generate.beams == 4  # --set over both
    assert config.retrieve.demonstrations == 1
    assert config.models.end_of_name == "eos"
    assert config.encode == Config().encode


def test_merging_leaves_what_was_given_alone() -> None:
    carried = {"generate": {"beams": 3}}
    loaded("generate: {length: 100}", "generate.beams=4", carried=carried)
    assert carried == {"generate": {"beams": 3}}


# All settings


def test_every_default_loads_again() -> None:
    config = Config()
    assert loaded(yaml.safe_dump(config.plain())) == config
    assert json.loads(json.dumps(config.plain())) == config.plain()


@pytest.mark.parametrize("name", [n for n in ALL if not n.endswith(".segments")])
def test_every_default_can_be_set(name: str) -> None:
    assert loaded("", f"{name}={json.dumps(ALL[name])}") == Config()


def test_every_type_is_one_that_is_checked() -> None:
    """A setting of another kind would be let through unchecked, or refused whatever it is."""

    def kinds(kind: Any) -> Iterator[Any]:
        for f in fields(kind):
            hint = typing.get_type_hints(kind)[f.name]
            inner = typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,)
            for one in inner:
                if is_dataclass(one):
                    yield from kinds(one)
                elif one is not Ellipsis:
                    yield f.name, one

    for name, kind in kinds(Config):
        assert kind in (str, int, float, bool) or typing.get_origin(kind) is typing.Literal, name


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), v, max_size=3),
)
names = st.sampled_from([*ALL, *(f.name for f in fields(Config))])


@settings(deadline=None, max_examples=300)
@given(name=names, value=values)
def test_any_value_is_taken_as_it_is_or_refused_in_words(name: str, value: Any) -> None:
    nested = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    try:
        config = loaded(yaml.safe_dump(nested))
    except ConfigError:
        return
    got = dict(settings_of(config)).get(name)
    got = list(got) if isinstance(got, tuple) else got
    same = repr(got) == repr(value) or (isinstance(value, int) and repr(got) == repr(float(value)))
    assert "." not in name or name.endswith(".segments") or same


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_set_is_taken_or_refused_in_words(text: str) -> None:
    for override in (text, f"generate.score={text}", f"models.language={text}", f"{text}=1"):
        with contextlib.suppress(ConfigError):
            load(None, {}, [override])


def test_the_repository_s_file_has_every_default() -> None:
    """It says so itself: every setting stands there with its default."""
    if not REPOSITORY.is_file():
        pytest.skip(f"there is no {REPOSITORY}")
    config = load(REPOSITORY, {}, [])
    assert dict(settings_of(config)) == ALL
    written = yaml.safe_load(REPOSITORY.read_text())
    for section in fields(Config):
        there = written[section.name]
        assert there.keys() == {f.name for f in fields(getattr(config, section.name))}, section.name
    for way in (config.offline, config.online):
        there = written[type(way).__name__.lower()]["segments"][0]
        assert there.keys() == {f.name for f in fields(way.segments[0])}


# The fingerprint

SERVER = ("address", "wait", "ca", "grpc", "on_disk", "quantized", "shards", "replicas")
PLACES = ("offline.", "online.", "train.", "bank.")  # what a build did, the workspace says
PLACES += tuple(f"vectors.{name}" for name in SERVER)
MACHINE = (
    "encode.device",
    "encode.threads",
    "encode.cache",
    "encode.downloads",
    "detect.device",
    "detect.batch",
    "encode.downloads_per_host",
    "encode.host_interval",
    "generate.cache_gib",
    "generate.gpu_memory",
    "generate.tensor_parallel",
    "encode.batch",
    "generate.sequences",
    "generate.batch_tokens",
    "generate.block",
    "generate.rounds",
    "generate.columns",
    "generate.arena",
    "generate.shared_attention",
)


def other(name: str) -> Any:
    """Another value of a setting, right for its type."""
    if name == "detect.by":
        return "names"  # of a base that has it otherwise
    value = ALL[name]
    section, _, setting = name.rpartition(".")
    hint = typing.get_type_hints(type(attrgetter(section)(Config())))[setting]
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if name in ("generate.gpu_memory", "generate.neighbour_weight", "generate.arena"):
        return value / 2
    if isinstance(value, int | float):
        return type(value)(value + 1)
    return f"{value}x" if isinstance(value, str) else value[:0]


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith((*PLACES, *MACHINE))])
def test_the_fingerprint_changes_with_meaning(name: str) -> None:
    base = changed(Config(), "generate.neighbour_weight", 0.0 if name == "generate.prior_weight" else 0.5)
    if name == "detect.by":
        base = replace(base, detect=Detect(by="both", model="some/model"))
    base = changed(base, "retrieve.shared_sets", 0 if name == "retrieve.official_order" else 1)  # not both
    assert changed(base, name, other(name)).fingerprint("facts") != base.fingerprint("facts")


ALONE = "online.api.min_replicas"  # cannot be changed: max_replicas goes with it


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith(PLACES) and n != ALONE])
def test_the_fingerprint_does_not_change_with_placement(name: str) -> None:
    assert changed(Config(), name, other(name)).fingerprint("facts") == Config().fingerprint("facts")


def test_the_fingerprint_does_not_change_with_the_machine() -> None:
    """Another device, or as much memory and as many threads as it has: results may be compared."""
    plain = Config().fingerprint("facts")
    assert [n for n in MACHINE if changed(Config(), n, other(n)).fingerprint("facts") != plain] == []


def test_the_fingerprint_is_of_the_knowledge_too() -> None:
    config = Config()
    prints = {
        config.fingerprint(*facts) for facts in ([], ["a"], ["b"], ["a", "b"], ["ab"], ["b", "a"], [1], ["1"])
    }
    assert len(prints) == 8


def test_the_fingerprint_is_the_same_in_every_process_and_spelling() -> None:
    one = loaded("generate: {beams: 3, length_penalty: 1}\nmodels: {clip: x}")
    two = loaded("models: {clip: x}\ngenerate: {length_penalty: 1.0}", "generate.beams=3")
    assert one.fingerprint("a") == two.fingerprint("a")
    assert len(one.fingerprint("a")) == 16


def test_a_configuration_is_not_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().generate.beams = 3  # type: ignore[misc]
