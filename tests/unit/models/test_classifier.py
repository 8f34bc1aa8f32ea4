"""Sequence classifiers: fresh heads, the token that is read, and scores of texts."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rl_lightning.errors import UserError
from rl_lightning.models import ClassifierFiles, Judge, PolicyFiles, Text, classifier_logits
from rl_lightning.models.settings import context_length
from tests.checks import assert_same, holds_only_for
from tests.support import random_rollout
from tests.tiny import CHARACTERS, EOS, PAD, tiny_model, tiny_tokenizer

VOCABULARY = 3 + len(CHARACTERS)


def save(directory, labels=("LABEL_0",), tokenizer=None, **config):
    """Save a random classifier on the tiny model's body."""
    base = tiny_model().config
    base.id2label = dict(enumerate(labels))
    base.label2id = {name: number for number, name in enumerate(labels)}
    for name, value in config.items():
        setattr(base, name, value)
    torch.manual_seed(1)
    LlamaForSequenceClassification(base).save_pretrained(directory)
    (tokenizer or tiny_tokenizer()).save_pretrained(directory)
    return str(directory)


# ------------------------------------------------------------------------------------------------ the token that is read


def one_by_one(model, rows):
    """The score of each row alone, without any padding, straight from the body and the head."""
    with torch.no_grad():
        return torch.stack([model.score(model.model(input_ids=row[None]).last_hidden_state[0, -1]) for row in rows])


def rows_of(rollout):
    return [ids[mask] for ids, mask in zip(rollout.input_ids, rollout.attention_mask, strict=True)]


def as_it_comes(model, input_ids, attention_mask):
    """What happens to rows that are padded on both sides, with whatever is there, in a plain call."""
    return model(input_ids=input_ids, attention_mask=attention_mask.long()).logits


def without_filling(model, input_ids, attention_mask):
    """Push to the left, but leave in the padding what is there."""
    order = attention_mask.long().argsort(stable=True, dim=1, descending=True)
    return as_it_comes(model, input_ids.gather(1, order), attention_mask.gather(1, order))


@holds_only_for(classifier_logits, as_it_comes=as_it_comes, without_filling=without_filling)
def test_the_score_is_that_of_the_last_real_token_whatever_the_padding(implementation):
    model = LlamaForSequenceClassification(tiny_model().config).double().eval()
    rollout = random_rollout()
    for fill in (PAD, EOS, 7):
        ids = torch.where(rollout.attention_mask, rollout.input_ids, fill)
        with torch.no_grad():
            assert_same(implementation(model, ids, rollout.attention_mask), one_by_one(model, rows_of(rollout)))


def test_learned_positions_count_from_the_first_real_token():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        pad_token_id=PAD,
        num_labels=1,
        initializer_range=0.5,
    )
    model = GPT2ForSequenceClassification(config).double().eval()
    rollout = random_rollout()
    with torch.no_grad():
        hidden = [model.transformer(input_ids=row[None]).last_hidden_state[0, -1] for row in rows_of(rollout)]
        expected = model.score(torch.stack(hidden))
        assert_same(classifier_logits(model, rollout.input_ids, rollout.attention_mask), expected)
        plain = as_it_comes(model, rollout.input_ids, rollout.attention_mask)
    assert float((plain - expected).abs().max()) > 1e-3


def test_where_the_tokenizer_pads_with_the_end_another_token_pads(tmp_path):
    """A response that ends is read at its end token, and one that does not elsewhere; transformers agrees."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny_model()
    model.config.pad_token_id = EOS
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    files = ClassifierFiles(str(tmp_path / "policy"))
    scorer = files.load_scorer().eval()
    assert files.tokenizer.pad_token == "<unk>" and scorer.config.pad_token_id == files.tokenizer.pad_token_id
    rows = [torch.tensor([4, 5, 6, EOS]), torch.tensor([4, 5, 6])]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=EOS)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    with torch.no_grad():
        scores = classifier_logits(scorer, padded, mask)
    assert_same(scores, one_by_one(scorer, rows), relative=1e-5)
    assert float((scores[0] - scores[1]).abs()) > 1e-3
    scorer.save_pretrained(tmp_path / "saved")
    files.tokenizer.save_pretrained(tmp_path / "saved")
    texts = ["123<eos>", "123"]
    batch = AutoTokenizer.from_pretrained(tmp_path / "saved")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()(**batch).logits
    assert_same(again, scores, relative=1e-5)


def test_a_tokenizer_with_nothing_but_an_end_is_warned_of(tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = tokenizer.pad_token = None
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert ClassifierFiles(str(tmp_path)).tokenizer.pad_token == "<eos>"
    assert "scores are read at the token before the end" in caplog.text


# ------------------------------------------------------------------------------------------------------------ fresh heads


def test_a_policy_gets_a_new_head_of_one_number_and_keeps_its_body(tiny_policy):
    scorer = ClassifierFiles(tiny_policy).load_scorer()
    body = PolicyFiles(tiny_policy).load().model.state_dict()
    assert scorer.score.weight.shape == (1, 32) and scorer.training
    for name, value in scorer.model.state_dict().items():
        assert torch.equal(value, body[name]), name


def test_the_new_head_is_a_function_of_the_seed(tiny_policy):
    def head(seed, draws):
        torch.manual_seed(seed)
        torch.rand(draws)
        before = torch.get_rng_state()
        weight = ClassifierFiles(tiny_policy).load_scorer().score.weight.detach()
        assert torch.equal(torch.get_rng_state(), before)
        return weight

    assert torch.equal(head(3, 0), head(3, 17))
    assert not torch.equal(head(3, 0), head(4, 0))
    assert float(head(3, 0).abs().max()) > 0


def test_a_classifier_of_one_label_goes_on_from_its_head(tmp_path):
    path = save(tmp_path)
    expected = LlamaForSequenceClassification.from_pretrained(path).score.weight
    assert torch.equal(ClassifierFiles(path).load_scorer().score.weight, expected)


def test_a_classifier_of_several_labels_is_no_place_to_start(tmp_path):
    with pytest.raises(UserError, match=r"3 labels apart \(bad, so-so, good\)"):
        ClassifierFiles(save(tmp_path, ("bad", "so-so", "good"))).load_scorer()


def test_a_policy_is_no_judge(tiny_policy):
    with pytest.raises(UserError, match="LlamaForCausalLM, not a sequence classifier"):
        Judge(ClassifierFiles(tiny_policy))


def test_a_judge_without_its_head_is_refused(tmp_path):
    path = save(tmp_path)
    tiny_model().save_pretrained(tmp_path / "body")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "body" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"lack 1 weights, such as score\.weight"):
        _ = Judge(ClassifierFiles(path)).model


# --------------------------------------------------------------------------------------------------------- scores of texts

TEXTS = [
    Text("1+2=", "3#3", True),
    Text("1+2=", "3#3", False),
    Text("12+34-5=", "46;41#41", True),
    Text("1=", "1", True),
]


def logits_of(path, texts):
    """The slow way: one text after the other."""
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(path).eval(), tiny_tokenizer()
    rows = [tokenizer(t.prompt + t.response).input_ids + [EOS] * t.ended for t in texts]
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0] for row in rows])


def test_scores_are_the_logits_of_the_texts_in_their_order(tmp_path):
    path = save(tmp_path)
    judge = Judge(ClassifierFiles(path))
    scores, cut = judge.score(TEXTS, "cpu")
    assert_same(torch.tensor(scores), logits_of(path, TEXTS)[:, 0], relative=1e-5)
    assert cut == [False] * 4 and len(set(scores)) == 4
    assert not judge.model.training and not any(p.requires_grad for p in judge.model.parameters())


@pytest.mark.parametrize("label", ["good", 1])
def test_of_several_labels_the_score_is_the_log_probability_of_the_one_named(tmp_path, label):
    path = save(tmp_path, ("bad", "good", "so-so"))
    scores, _ = Judge(ClassifierFiles(path), label).score(TEXTS, "cpu")
    assert_same(torch.tensor(scores), logits_of(path, TEXTS).log_softmax(1)[:, 1], relative=1e-5)


def test_labels_that_do_not_exclude_each_other_have_chances_of_their_own(tmp_path):
    path = save(tmp_path, ("bad", "good"), problem_type="multi_label_classification")
    scores, _ = Judge(ClassifierFiles(path), "good").score(TEXTS, "cpu")
    assert_same(torch.tensor(scores), logits_of(path, TEXTS).sigmoid().log()[:, 1], relative=1e-5)


@pytest.mark.parametrize(
    ("labels", "label", "said"),
    [
        (("bad", "good"), None, "has several labels: set label in its arguments to one of bad, good"),
        (("bad", "good"), "well", "has no label 'well': set label in its arguments to one of bad, good"),
        (("bad", "good"), 2, "has no label 2"),
        (("only",), "only", "has one label"),
    ],
)
def test_a_label_that_is_not_there_or_not_named_is_a_clear_mistake(tmp_path, labels, label, said):
    with pytest.raises(UserError, match=said):
        Judge(ClassifierFiles(save(tmp_path, labels)), label)


def test_texts_go_through_in_batches_of_like_lengths(tmp_path, monkeypatch):
    judge = Judge(ClassifierFiles(save(tmp_path)), batch_size=2)
    widths = []
    forward = judge.model.forward
    monkeypatch.setattr(
        type(judge.model),
        "forward",
        lambda self, input_ids, **k: (widths.append(tuple(input_ids.shape)), forward(input_ids, **k))[1],
    )
    judge.score(TEXTS, "cpu")
    assert widths == [(2, 7), (2, 17)]
    with pytest.raises(UserError, match="batch_size"):
        Judge(judge.files, batch_size=0)


def test_a_text_that_is_too_long_loses_the_beginning_of_its_prompt(tmp_path):
    path = save(tmp_path, max_position_embeddings=10)
    judge = Judge(ClassifierFiles(path))
    long, short = Text("1+2+3+4=", "10#10", True), Text("+4=", "10#10", True)
    rows, cut = judge.encode([long, short])
    assert [len(row) for row in rows] == [10, 9] and cut == [True, False]
    assert rows[0][1:] == rows[1] and rows[0][0] == tiny_tokenizer()("3").input_ids[0]


def test_the_special_tokens_of_an_encoder_stay(tmp_path):
    """[CLS] is where BERT reads the score: it must survive the cut, and stand there once."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "#"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="# $A", special_tokens=[("#", 3 + CHARACTERS.index("#"))]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=1,
        pad_token_id=PAD,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = Judge(ClassifierFiles(str(tmp_path)))
    first = 3 + CHARACTERS.index("#")
    (row, templated), cut = judge.encode([Text("1+2+3+4=", "9", True), Text("#1=", "1", True)])
    assert row[0] == first and len(row) == 8 and cut == [True, False]
    assert templated.count(first) == 1
    (alone,), (together, _) = (
        judge.score([Text("1=", "1", True)], "cpu")[0],
        judge.score([Text("1=", "1", True), Text("1+2=", "3", True)], "cpu")[0],
    )
    assert alone == pytest.approx(together, rel=1e-5)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 18,
}


def roberta(directory, **changes):
    """Save a classifier whose positions begin behind that of padding."""
    torch.manual_seed(0)
    config = RobertaConfig(**SMALL, max_position_embeddings=20, pad_token_id=1, eos_token_id=2, num_labels=1)
    RobertaForSequenceClassification(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return ClassifierFiles(str(directory))


def test_the_last_positions_of_robertas_relatives_are_not_to_be_used(tmp_path):
    files = roberta(tmp_path)
    assert files.context_length == 20 - 1 - 1
    judge = Judge(files)
    assert judge.longest == 18
    scores, _ = judge.score([Text("1", "2" * 40, False), Text("1", "2", False)], "cpu")
    assert math.isnan(scores[0]) and not math.isnan(scores[1]), "a response that alone is too long has no score"
    (whole, cut), was_cut = judge.score([Text("1" * 18, "", False), Text("1" * 40, "", False)], "cpu")
    assert was_cut == [False, True] and whole == pytest.approx(cut)
    ids = torch.full((1, 19), 4)
    with pytest.raises((IndexError, RuntimeError)):
        files.load_judge()(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_rows_end_where_longrope_would_take_its_long_factors():
    """transformers chooses the factors for a whole pass: a longer row changes what the rows beside it say."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "rope_theta": 1e4}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32, **factors}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 32}
    config = Phi3Config(**SMALL, **lengths, pad_token_id=0, initializer_range=0.3, rope_parameters=rope)
    assert context_length(config) == 32
    torch.manual_seed(0)
    model, ids = Phi3ForCausalLM(config).eval(), torch.randint(3, 18, (2, 40))
    with torch.no_grad():
        alone = model(input_ids=ids[:1, :20]).logits
        for width, alike in ((32, True), (40, False)):
            beside = model(input_ids=ids[:, :width]).logits[:1, :20]
            assert torch.allclose(beside, alone, atol=1e-4) == alike


def test_longrope_may_have_parameters_for_each_kind_of_layer():
    rope = {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}
    config = SimpleNamespace(max_position_embeddings=256, original_max_position_embeddings=48, rope_parameters=rope)
    config.get_text_config = lambda: config
    assert context_length(config) == 48
    rope["full_attention"] = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    assert context_length(config) == 256


def test_positions_without_padding_are_all_to_be_used(tiny_policy):
    assert PolicyFiles(tiny_policy).context_length == 64


@pytest.mark.parametrize("pad_id", [-1, 10**6])
def test_a_pad_token_that_is_none_counts_as_not_given(tmp_path, pad_id):
    path = save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": pad_id}))
    files = ClassifierFiles(path)
    assert files.tokenizer.pad_token_id == PAD
    texts = [Text("1+2=", "3", True), Text("1", "2", True)]
    scores, _ = Judge(files).score(texts, "cpu")
    alone = [Judge(ClassifierFiles(path)).score([text], "cpu")[0][0] for text in texts]
    assert_same(scores, alone, 1e-5)
    assert files.load_scorer().config.pad_token_id == PAD
