"""Runs of a policy with a chat template whose turns do not end with EOS."""

import datetime
import json
import string

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import BertConfig, BertForSequenceClassification

import rl_lightning.data.record as record_module
import rl_lightning.text.day as day_module
import rl_lightning.trainer as trainer_module
from rl_lightning import Trainer
from rl_lightning.algorithms import DPO, GRPO, SFT, RewardModel
from rl_lightning.callbacks.run_card import run_card
from rl_lightning.data import DemonstrationDataModule, RewardDataModule, RolloutDataModule
from rl_lightning.data.reward_models import ModelReward
from rl_lightning.data.sources import FileExamples
from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import ClassifierFiles, Judge, Text
from rl_lightning.rewards import RewardSpec
from tests.support import trainer
from tests.tokenizers import build, policy

ROWS = [{"prompt": f"{n}+1=", "answer": str(n), "good": f"{n + 1}", "bad": f"{n}"} for n in range(6)]


def source(tmp_path, **columns):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return FileExamples(train=str(path), val=str(path), **columns)


class Watch(RolloutCallback):
    def on_rollout_end(self, trainer, module, rollout):
        self.rollout = rollout


def fit(data, module, directory, *callbacks, **options):
    run = trainer(directory, list(callbacks), limit_val_batches=0, max_steps=1, **options)
    run.fit(module, datamodule=data)
    return run_card(run, module)


@pytest.mark.parametrize(
    ("kind", "end"), [("qwen-base", "<|im_end|>"), ("text-end", "<|im_end|>"), ("gpt2", "<|endoftext|>")]
)
def test_demonstrations_and_pairs_end_as_the_template_ends_a_turn(tmp_path, kind, end):
    path, tokenizer = policy(kind, tmp_path / "policy")
    data = DemonstrationDataModule(prompts=source(tmp_path, response_column="good"), batch_size=2, seed=0)
    card = fit(data, SFT(policy=path), tmp_path, online=False)
    batch = data.table.batch(torch.tensor([1]))
    assert tokenizer.decode(batch.response_ids[0]) == f"2{end}"
    assert f"written ones end with {end}" in card and "sampling stops at" in card
    for module in (DPO(policy=path), RewardModel(policy=path)):
        pairs = RewardDataModule(
            prompts=source(tmp_path, answer_column=None, response_column="good", rejected_column="bad"), origin="files",
            batch_size=2, seed=0,
        )  # fmt: skip
        fit(pairs, module, tmp_path / type(module).__name__, online=False)
        batch = pairs.table.batch(torch.tensor([1]))
        assert [tokenizer.decode(ids) for ids in batch.response_ids] == [f"2{end}", f"1{end}"]


def test_a_reward_model_may_be_an_encoder_without_eos(tmp_path):
    tokenizer = build("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    columns = {"answer_column": None, "response_column": "good", "rejected_column": "bad"}
    pairs = RewardDataModule(prompts=source(tmp_path, **columns), origin="files", batch_size=2, seed=0)
    fit(pairs, RewardModel(policy=str(tmp_path / "bert")), tmp_path, online=False)
    batch = pairs.table.batch(torch.tensor([1]))
    assert [tokenizer.decode(ids) for ids in batch.input_ids] == ["[CLS]1+1=2[SEP]", "[CLS]1+1=1[SEP]"]


@pytest.mark.parametrize("generator", [NativeGenerator, TransformersGenerator])
def test_sampling_stops_at_strings_and_tokens_that_are_asked_for(tmp_path, generator):
    path, tokenizer = policy("qwen-base", tmp_path / "policy")
    letters, digits = list(string.ascii_letters), [tokenizer(digit).input_ids[0] for digit in string.digits]
    data = RolloutDataModule(
        prompts=source(tmp_path), sampling=Sampling(5, stop=letters, stop_token_ids=digits), generator=generator(),
        rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")], prompts_per_rollout=4, group_size=4, seed=0,
    )  # fmt: skip
    watch = Watch()
    card = fit(data, GRPO(policy=path, kl_coef=0.0), tmp_path, watch)
    rollout, ends = watch.rollout, {*letters, *string.digits, "<|im_end|>", "<|endoftext|>"}
    stopped = 0
    for row in range(len(rollout)):
        pieces = [tokenizer.decode(one) for one in rollout.response_ids[row][rollout.response_attention[row]]]
        assert not ends & set(pieces[:-1])
        assert (pieces[-1] in ends) == (not bool(rollout.truncated[row]))
        stopped += pieces[-1] in ends
        # Strings and tokens that were asked for stay in the text; special tokens do not.
        assert rollout.responses[row].endswith(pieces[-1]) or pieces[-1].startswith("<|") or "\ufffd" in pieces[-1]
    assert 0 < stopped < len(rollout), "both kinds are wanted here"
    assert "'a', 'b'" in card


def test_a_stop_token_that_the_policy_does_not_have(tmp_path):
    path, _ = policy("qwen-base", tmp_path / "policy")
    data = RolloutDataModule(prompts=source(tmp_path), sampling=Sampling(4, stop_token_ids=[7, 5000]), seed=0)
    with pytest.raises(UserError, match=r"stop_token_ids: 5000 is none of the policy's"):
        fit(data, GRPO(policy=path), tmp_path)


def test_a_reward_model_judges_the_tokens_that_it_learnt_from(tmp_path, monkeypatch):
    path, _ = policy("chatml-bos", tmp_path / "policy")
    pairs = RewardDataModule(
        prompts=source(tmp_path, answer_column=None, response_column="good", rejected_column="bad"), origin="files",
        batch_size=2, seed=0,
    )  # fmt: skip
    module = RewardModel(policy=path)
    fit(pairs, module, tmp_path / "rm", online=False)
    for part in module.hf_parts():
        part.save_pretrained(tmp_path / "judge")
    seen = []
    monkeypatch.setattr(ModelReward, "__call__", lambda self, samples: seen.extend(samples) or [0.0] * len(samples))
    data = RolloutDataModule(
        prompts=source(tmp_path), sampling=Sampling(4), rewards=[RewardSpec(model=str(tmp_path / "judge"))],
        prompts_per_rollout=4, group_size=2, seed=0,
    )  # fmt: skip
    fit(data, GRPO(policy=path, kl_coef=0.0), tmp_path / "run")
    judge = Judge(ClassifierFiles(str(tmp_path / "judge")))
    served = pairs.table.batch(torch.arange(len(pairs.table)))
    trained = [ids[mask].tolist() for ids, mask in zip(served.input_ids, served.attention_mask, strict=True)]
    questions = {sample.prompt: sample.messages for sample in seen}
    for prompt, messages in questions.items():
        number = int(messages[0]["content"][0])
        (row,), _ = judge.encode([Text(prompt, str(number + 1), True, messages)])
        assert row in trained


class Tomorrow(datetime.date):
    @classmethod
    def today(cls):
        return cls(2026, 7, 27)


def test_a_template_that_writes_the_date_writes_that_of_the_run_when_it_goes_on(tmp_path, monkeypatch):
    """And over midnight; a new run writes its own."""
    path, tokenizer = policy("qwen-base", tmp_path / "policy")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}|" + tokenizer.chat_template
    tokenizer.save_pretrained(path)

    def run(**where):
        data = DemonstrationDataModule(prompts=source(tmp_path, response_column="good"), batch_size=2, seed=0)
        saver = ModelCheckpoint(tmp_path / "kept", save_last=True, every_n_epochs=1)
        Trainer(
            default_root_dir=tmp_path,
            callbacks=[saver],
            logger=False,
            enable_progress_bar=False,
            max_steps=where.pop("steps"),
            accelerator="cpu",
        ).fit(SFT(policy=path), datamodule=data, **where)
        return tokenizer.decode(data.table.batch(torch.tensor([1])).input_ids[0])

    monkeypatch.setattr(
        trainer_module, "date", type("Then", (datetime.date,), {"today": classmethod(lambda cls: cls(2026, 7, 26))})
    )
    assert "26 Jul 2026|" in run(steps=1)
    for module in (trainer_module, record_module, day_module):
        monkeypatch.setattr(module, "date", Tomorrow)
    assert "26 Jul 2026|" in run(steps=2, ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert "27 Jul 2026|" in run(steps=1)
