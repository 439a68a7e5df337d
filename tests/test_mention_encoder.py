"""Mention vectors against transformers by hand, and what is read from a model's folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from gemel_ray.models.encoders import TEXTS_AT_ONCE, MentionEncoder
from gemel_ray.models.revision import revision
from gemel_ray.starter.models import forget_how_it_was_read, mention_encoder

TEXTS = ["Apple", "Stanford University", "the 44th president of the United States", "É", "", "Apple"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "red", "green", "blue"]


@pytest.fixture(scope="module")
def minilm() -> MentionEncoder:
    return MentionEncoder(str(mention_encoder()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MentionEncoder:
    return MentionEncoder(str(write_model(tmp_path_factory.mktemp("tiny") / "model")), pooling="mean")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost tiny models more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_hand(folder: Path, text: str, pooling: str) -> np.ndarray:
    """One text alone, so without any padding: no mask and no batch to get wrong."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        answer = model(**tokenizer(text, return_tensors="pt"))
    states = answer.last_hidden_state[0]
    vector = {"mean": states.mean(0), "cls": states[0], "pooler": answer.pooler_output[0]}[pooling]
    return (vector / vector.norm()).numpy()


def test_minilm_answers_as_transformers_does(minilm: MentionEncoder) -> None:
    vectors = minilm.encode(TEXTS)
    assert (vectors.dtype, vectors.shape, minilm.width) == (np.float32, (6, 384), 384)
    assert minilm.pooling == "mean"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS[:5], vectors, strict=False):
        np.testing.assert_allclose(vector, by_hand(mention_encoder(), text, "mean"), atol=2e-6)


def test_related_mentions_are_nearer_than_others(minilm: MentionEncoder) -> None:
    apple, inc, stanford, university, pie = minilm.encode(
        ["Apple", "Apple Inc.", "Stanford", "Stanford University", "a lemon pie"]
    )
    assert stanford @ university > 0.9
    assert apple @ inc > 0.7
    assert max(apple @ stanford, inc @ university, stanford @ pie) < 0.45


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS[4:]), max_size=15).map(" ".join), max_size=12),
    strange=st.text(max_size=20),
)
def test_a_text_does_not_depend_on_its_company(tiny: MentionEncoder, texts: list[str], strange: str) -> None:
    together = tiny.encode([*texts, strange])
    assert together.shape == (len(texts) + 1, 16) and np.isfinite(together).all()
    for text, vector in zip([*texts, strange], together, strict=True):
        np.testing.assert_allclose(vector, tiny.encode([text])[0], atol=1e-5)


def test_rows_come_back_in_order_over_many_passes(tiny: MentionEncoder) -> None:
    words = np.array(WORDS[4:])
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(1, 15))) for _ in range(300)]
    assert len(set(texts)) > 2 * TEXTS_AT_ONCE
    some = [0, 1, 63, 127, 128, 200, 299]
    alone = np.concatenate([tiny.encode([texts[i]]) for i in some])
    np.testing.assert_allclose(tiny.encode(texts)[some], alone, atol=1e-5)


def test_equal_texts_are_computed_once(minilm: MentionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = minilm._forward
    monkeypatch.setattr(minilm, "_forward", lambda tokens: seen.append(len(tokens)) or forward(tokens))
    vectors = minilm.encode(["Paris", "Rome", "Paris"] * 50)
    assert seen == [2]
    assert np.array_equal(vectors[0], vectors[149]) and not np.array_equal(vectors[0], vectors[1])


def test_longer_texts_are_cut_where_the_model_says(minilm: MentionEncoder) -> None:
    # sentence_bert_config.json says 256 tokens, two of them special; the model itself would take 512.
    full, longer, shorter = (minilm.encode(["word " * count])[0] for count in (254, 300, 253))
    assert np.array_equal(full, longer) and not np.array_equal(full, shorter)


def test_bfloat16_answers_nearly_the_same(minilm: MentionEncoder) -> None:
    half = MentionEncoder(str(mention_encoder()), dtype="bfloat16").encode(TEXTS)
    full = minilm.encode(TEXTS)
    assert half.dtype == np.float32 and not np.array_equal(half, full)
    assert (half * full).sum(1).min() > 0.99


# Folders of other forms, tiny


def write_model(folder: Path, *, pooler: bool = True, roberta: bool = False) -> Path:
    """A tiny BERT or RoBERTa with a word tokenizer; not zero, so that poolings differ."""
    size = dict(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    size |= dict(intermediate_size=32, max_position_embeddings=20, initializer_range=0.5)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    if roberta:
        model = RobertaModel(RobertaConfig(**size, pad_token_id=1), add_pooling_layer=pooler)
        words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *WORDS[4:]]
    else:
        model, words = BertModel(BertConfig(**size), add_pooling_layer=pooler), WORDS
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_layers(folder: Path, *kinds: str, transformer: str = "", **pooling: object) -> None:
    """modules.json as sentence-transformers writes it."""
    paths = {"Transformer": transformer, "Pooling": "1_Pooling"}
    modules = [
        {"path": paths.get(kind, ""), "type": f"sentence_transformers.models.{kind}"} for kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
def test_each_pooling_answers_as_transformers_does(tmp_path: Path, pooling: str) -> None:
    folder = write_model(tmp_path / "model")
    vectors = MentionEncoder(str(folder), pooling=pooling).encode(["a b c", "red", "a b c d e green blue"])
    for text, vector in zip(["a b c", "red", "a b c d e green blue"], vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(folder, text, pooling), atol=1e-5)


def test_a_plain_encoder_with_a_trained_pooler_uses_it_as_simcse_does(tmp_path: Path) -> None:
    assert MentionEncoder(str(write_model(tmp_path / "model"))).pooling == "pooler"


def test_a_pooler_that_was_never_trained_is_not_used(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", pooler=False)
    assert AutoModel.from_pretrained(folder).pooler is not None, "transformers draws one at random"
    assert MentionEncoder(str(folder)).pooling == "mean"
    with pytest.raises(ValueError, match="no trained pooler"):
        MentionEncoder(str(folder), pooling="pooler")


@pytest.mark.parametrize(
    ("stated", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": "mean"}, "mean"),
    ],
)
def test_the_stated_pooling_goes_before_the_pooler(tmp_path: Path, stated: dict, pooling: str) -> None:
    folder = write_model(tmp_path / "model")
    write_layers(folder, "Transformer", "Pooling", "Normalize", **stated)
    assert MentionEncoder(str(folder)).pooling == pooling
    assert MentionEncoder(str(folder), pooling="pooler").pooling == "pooler"
    (folder / "modules.json").unlink()
    assert MentionEncoder(str(folder)).pooling == pooling, "1_Pooling alone says it, too"


def test_the_transformer_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    inner = write_model(tmp_path / "model" / "0_Transformer")
    write_layers(
        tmp_path / "model", "Transformer", "Pooling", transformer="0_Transformer", pooling_mode="mean"
    )
    (inner / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    encoder = MentionEncoder(str(tmp_path / "model"))
    np.testing.assert_allclose(encoder.encode(["a b"])[0], by_hand(inner, "a b", "mean"), atol=1e-5)
    assert np.array_equal(encoder.encode(["a b"]), encoder.encode(["a b c"]))


@pytest.mark.parametrize(
    ("kinds", "stated", "said"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "layer Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling 'max'"),
        (["Transformer", "Pooling"], {"pooling_mode": ["cls", "mean"]}, r"pooling 'cls \+ mean'"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, kinds: list, stated: dict, said: str) -> None:
    folder = write_model(tmp_path / "model")
    write_layers(folder, *kinds, **stated)
    with pytest.raises(ValueError, match=said):
        MentionEncoder(str(folder))


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lack 16 parts, the first encoder\.layer\.2"):
        MentionEncoder(str(folder))


@pytest.mark.parametrize(("roberta", "places"), [(False, 20), (True, 18)])
def test_a_text_never_outgrows_the_positions(tmp_path: Path, roberta: bool, places: int) -> None:
    folder = write_model(tmp_path / "model", roberta=roberta)
    encoder = MentionEncoder(str(folder))
    words = lambda count: " ".join(["a"] * count)  # noqa: E731
    assert np.array_equal(encoder.encode([words(places - 2)]), encoder.encode([words(500)]))
    assert not np.array_equal(encoder.encode([words(places - 3)]), encoder.encode([words(500)]))
    # RoBERTa numbers positions by where the padding is: company must not shift them.
    alone, together = encoder.encode(["b"])[0], encoder.encode(["b", words(9)])[0]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_wrong_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'int8'"):
        MentionEncoder("anything", dtype="int8")


def test_the_revision_follows_the_content(tmp_path: Path) -> None:
    one, same = write_model(tmp_path / "one"), write_model(tmp_path / "same")
    other = write_model(tmp_path / "other", pooler=False)
    revisions = [revision(str(folder)) for folder in (one, same, other)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_a_model_converted_without_the_hub_has_the_same_revision(tmp_path: Path) -> None:
    """Transformers notes in a tokenizer's settings how it was read."""
    found = set()
    for offline in (True, False):
        folder = tmp_path / str(offline)
        folder.mkdir()
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({"backend": "tokenizers", "local_files_only": offline}, indent=2))
        forget_how_it_was_read(file)
        found.add(revision(str(folder)))
    assert len(found) == 1
