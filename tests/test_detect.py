"""Which spans of a text are mentions: in many scripts, by names, by how often they are linked, by a model."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.cli import main
from gemel_ray.detecting import LinkStatistics, Names, Tagger, longest, rarely_linked
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.records import DOCUMENT
from gemel_ray.stages.detect import Detect


def found(text: str, *forms: str, any_case: bool = False) -> list[str]:
    return [text[a:b] for a, b in longest(Names(forms, any_case).whole_words(text))]


@pytest.mark.parametrize(
    ("text", "forms", "expected"),
    [
        ("New York City, New Yorkers", ["New York", "New York City", "York"], ["New York City"]),
        ("Paris-based, Paris's, (Paris)", ["Paris"], ["Paris"] * 3),
        ("Parisian comparison", ["Paris"], []),
        ("The Coca-Cola Company", ["Coca-Cola"], ["Coca-Cola"]),
        ("習近平在北京會見馬克龍", ["北京", "馬克龍", "習近平"], ["習近平", "北京", "馬克龍"]),
        ("東京タワーの写真", ["東京", "東京タワー"], ["東京タワー"]),
        ("한국은행이 발표했다", ["한국은행"], ["한국은행"]),
        ("นายกรัฐมนตรีเยือนกรุงเทพมหานครวันนี้", ["กรุงเทพมหานคร"], ["กรุงเทพมหานคร"]),
        ("दिल्ली में", ["दिल्ली"], ["दिल्ली"]),
        ("दिल्लीवाले", ["दिल्ली"], []),
        ("हिन्दी", ["हिन्द"], []),
        ("زار باريس أمس", ["باريس"], ["باريس"]),
        ("باريسي", ["باريس"], []),
        ("\U0001d11e Adobe \U0001f469\u200d\U0001f680 Google", ["Adobe", "Google"], ["Adobe", "Google"]),
        ("\U0001f469\u200d\U0001f680", ["\U0001f680"], []),
    ],
)
def test_names_are_found_as_whole_words_in_many_scripts(
    text: str, forms: list[str], expected: list[str]
) -> None:
    assert found(text, *forms) == expected


PIECES = ("Paris", "New ", "York", "é", "e\u0301", " ", "'", "\u2019", "北京", "이")
FORMS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@given(st.lists(FORMS, max_size=9), st.lists(FORMS, max_size=3), st.booleans())
def test_names_that_are_in_none_of_the_searched_texts_are_left_out(
    forms: list[str], texts: list[str], any_case: bool
) -> None:
    others = [f"{number} other names" for number in range(100)]
    every, likely = Names(forms, any_case), Names([*forms, *others], any_case, texts)
    for text in texts:
        assert set(likely.whole_words(text)) == set(every.whole_words(text))
    assert len(likely) <= len(every)


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_an_accent_may_be_written_either_way(written: Any, named: Any) -> None:
    text = unicodedata.normalize(written, "Der Zürcher See bei Zürich, 𝄞, Málaga, 서울에서.")
    names = ("Zürich", "Málaga", "서울")
    forms = [unicodedata.normalize(named, form) for form in names]
    assert found(text, *forms) == [unicodedata.normalize(written, form) for form in names]


def test_an_apostrophe_may_be_written_either_way() -> None:
    assert found("at O\u2019Hare, O'Hare", "O'Hare") == found("at O\u2019Hare, O'Hare", "O\u2019Hare")
    assert found("at O\u2019Hare, O'Hare", "O'Hare") == ["O\u2019Hare", "O'Hare"]


@pytest.mark.parametrize(
    ("text", "form"),
    [("paris in spring", "Paris"), ("pARIS", "Paris"), ("die strasse", "Straße"), ("İstanbul ve", "İSTAnbul"),
     ("αθήνα", "ΑΘΉΝΑ")],
)  # fmt: skip
def test_names_are_found_in_any_case(text: str, form: str) -> None:
    assert found(text, form) == []
    (span,) = Names([form], any_case=True).whole_words(text)
    assert text[slice(*span)].casefold() == form.casefold()


@pytest.mark.parametrize("form", ["New York", "New\u00a0York", "New  York "])
@pytest.mark.parametrize("gap", [" ", "\u00a0", "  ", "\n", " \r\n\t", "\u2009"])
def test_white_space_may_be_any(form: str, gap: str) -> None:
    """What is found are the text's own characters."""
    text = f"In{gap}New{gap}York{gap}City,{gap}Newyork"
    assert found(text, form) == [f"New{gap}York"]
    assert found(text, form, any_case=True) == [f"New{gap}York"]


@pytest.mark.parametrize("text", ["Zero\u00adWidth here", "Zero\u200bWidth\ufeff here"])
def test_characters_that_nobody_sees_are_no_part_of_a_name(text: str) -> None:
    (name,) = found(text, "ZeroWidth")
    assert name.startswith("Zero") and "Width" in name


def test_a_name_in_capitals_is_itself() -> None:
    assert found("ADOBE AND GOOGLE meet Apple", "Adobe", "Google", "apple") == ["ADOBE", "GOOGLE"]


def test_a_short_name_of_wide_characters_is_a_name(tmp_path: Path) -> None:
    assert mentions(Detect(), knowing(tmp_path, "北京", "Al"), "Al 在北京") == [["北京"]]


def document(text: str, *mentions: str) -> dict[str, Any]:
    given = [{"start": text.index(m), "end": text.index(m) + len(m)} for m in mentions]
    return {"document_id": "d", "source": "s", "text": text, "given": given}


def learnt(folder: Path, rows: list[dict[str, Any]], *forms: str) -> None:
    what = LinkStatistics()
    list(what.observe([pa.Table.from_pylist(rows, DOCUMENT)]))
    what.write(forms, folder)


def test_names_that_are_mostly_words_are_learnt(tmp_path: Path) -> None:
    rows = [document(f"It shows Paris {i}", "Paris") for i in range(30)]
    rows += [document("Stephen King's It premiered in Paris", m) for m in ("It", "Paris")]
    rows += [document("Rare It here", "Rare")]
    learnt(tmp_path, rows, "It", "Paris", "Rare", "Never")
    told = json.loads((tmp_path / "surface_forms.json").read_text())
    assert told == {"It": [1, 32], "Paris": [31, 31]}
    assert rarely_linked(tmp_path, 0.05) == {"It"}
    assert rarely_linked(tmp_path, 0.01) == set()


def test_a_name_inside_a_longer_mention_is_linked(tmp_path: Path) -> None:
    learnt(tmp_path, [document(f"New York City {i}", "New York City") for i in range(9)], "York")
    assert json.loads((tmp_path / "surface_forms.json").read_text()) == {"York": [9, 9]}


def test_a_workspace_without_demonstrations_knows_nothing_of_it(tmp_path: Path) -> None:
    assert rarely_linked(tmp_path, 0.5) == set()


def mentions(stage: Detect, workspace: Any, *texts: str) -> list[list[str]]:
    batch = pa.table({"text": list(texts), "given": pa.nulls(len(texts), DOCUMENT.field("given").type)})
    out: Any = stage.start(workspace)(batch)
    return [[m["mention"] for m in row] for row in out["mentions"].to_pylist()]


def knowing(folder: Path, *forms: str) -> Any:
    """As much of a workspace as Detect asks for."""
    return SimpleNamespace(folder=folder, entities=SimpleNamespace(surface_forms=lambda: iter(forms)))


def test_stopped_and_rarely_linked_names_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "stop.txt").write_text("Google\n")
    (tmp_path / "surface_forms.json").write_text('{"It": [1, 100], "Ada": [50, 100]}')
    workspace = knowing(tmp_path, "Google", "It", "Ada", "IBM", "Al")
    text = "It is Ada of Google, Al and IBM."
    stage = Detect(stop_names=str(tmp_path / "stop.txt"), min_characters=2)
    assert mentions(stage, workspace, text) == [["Ada", "Al", "IBM"]]
    assert mentions(
        replace(stage, stop_names="", link_probability=0.0, min_characters=3), workspace, text
    ) == [["Ada", "Google", "IBM"]]
    assert mentions(replace(stage, max_mentions=1), workspace, text) == [["Ada"]]


def test_the_starter_s_names_are_found_in_any_case_only_when_asked(workspace: Workspace) -> None:
    text = "adobe and google met APPLE"
    assert mentions(Detect(), workspace, text) == [["APPLE"]]
    assert mentions(Detect(case="any"), workspace, text) == [["adobe", "google", "APPLE"]]


def test_a_model_is_asked_for_by_name() -> None:
    with pytest.raises(ValueError, match=r"detect\.by=model needs detect\.model"):
        Detect(by="model")


def test_what_is_not_there_is_said_before_the_first_document(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"detect\.stop_names: there is no file .*/words\.txt"):
        Detect(stop_names=str(tmp_path / "words.txt")).start(knowing(tmp_path))
    with pytest.raises(ValueError, match=r"detect\.model .*/tagger cannot be loaded"):
        Detect(by="both", model=str(tmp_path / "tagger")).start(knowing(tmp_path))


def test_a_job_here_is_refused_at_once(
    workspace_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "Adobe"}')
    asked = ["link", str(tmp_path / "in.jsonl"), "--workspace", str(workspace_folder)]
    assert main([*asked, "--output", str(tmp_path / "out"), "--set", "detect.stop_names=nowhere.txt"]) == 2
    assert "detect.stop_names: there is no file nowhere.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tagging_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real BERT for token classification, of two layers and twenty words, whose weights are set by hand:
    it tags capitalised words that it knows."""
    import torch
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tagger")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "Ada",
        "Love",
        "##lace",
        "Zürich",
        "in",
        "met",
        ".",
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=False, model_max_length=40)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"},
        label2id={"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3},
    )
    model = BertForTokenClassification(config)
    labels = {"Ada": 1, "Love": 2, "##lace": 2, "Zürich": 3}
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.fill_(1)
        for number, word in enumerate(words):
            model.bert.embeddings.word_embeddings.weight[number, labels.get(word, 0)] = 1
        for label in range(4):
            model.classifier.weight[label, label] = 10
    model.save_pretrained(folder)
    return str(folder)


def test_a_model_s_tags_become_spans(tagging_model: str) -> None:
    tag = Tagger(tagging_model, "cpu", 4, 0.5)
    text = "𝄞 Ada Lovelace in Zürich ."
    assert [[text[a:b] for a, b in spans] for spans in tag([text])] == [["Ada Lovelace", "Zürich"]]
    assert tag(["met in", "Ada met Ada"]) == [[], [(0, 3), (8, 11)]]
    assert tag([]) == []


def test_a_text_longer_than_the_model_takes_is_gone_over_in_windows(tagging_model: str) -> None:
    text = "met in " * 60 + "Zürich ." + " met in" * 60 + " Ada"
    ((place, person),) = Tagger(tagging_model, "cpu", 4, 0.5)([text])
    assert (text[slice(*place)], text[slice(*person)]) == ("Zürich", "Ada")


def test_a_model_s_mentions_and_names_are_joined(tagging_model: str, tmp_path: Path) -> None:
    workspace = knowing(tmp_path, "Lovelace", "met")
    text = "Ada Lovelace met Zürich"
    both = Detect(by="both", model=tagging_model, device="cpu")
    assert mentions(both, workspace, text) == [["Ada Lovelace", "met", "Zürich"]]
    assert mentions(replace(both, by="model"), workspace, text) == [["Ada Lovelace", "Zürich"]]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"detect\.model .*nowhere cannot be loaded"):
        Tagger(str(tmp_path / "nowhere"), "cpu", 4, 0.5)
