"""A policy module's loss, forward and backward, against a padded forward pass with `log_softmax`.

One pass over groups of random responses of log-normal lengths; nothing is updated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from examples.bench.turns import turns
from examples.bench.work import Work, forced_lengths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rl_lightning.algorithms import GRPO
    from rl_lightning.types import Microbatch


@dataclass
class Group:
    """The rows of a step.

    Args:
        prompts, responses: token ids of each row.
        advantages: one per row.
        size: number of responses per prompt; these are neighbours.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    advantages: list[float]
    size: int

    @classmethod
    def random(cls, prompts: list[list[int]], size: int, new_tokens: int, vocabulary: int, step: int) -> Group:
        """Draw random responses to some prompts."""
        draw = random.Random(step)
        lengths = forced_lengths(len(prompts) * size, new_tokens, step)
        return cls(
            [ids for ids in prompts for _ in range(size)],
            [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths],
            [draw.gauss(0, 1) for _ in lengths],
            size,
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids and their mask (B, T), prompts padded left and responses right, their mask (B, R), and advantages (B, R)."""
        import torch

        width, length = max(map(len, self.prompts)), max(map(len, self.responses))
        ids = torch.zeros(len(self.prompts), width + length, dtype=torch.long)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, (prompt, response) in enumerate(zip(self.prompts, self.responses, strict=True)):
            place = slice(width - len(prompt), width + len(response))
            ids[row, place] = torch.tensor(prompt + response)
            mask[row, place] = True
        return ids, mask, mask[:, width:], torch.tensor(self.advantages)[:, None].expand(-1, length)


def ours(work: Work) -> None:
    """Run this library's module, one pass per command."""
    from rl_lightning.algorithms import GRPO

    module = GRPO(policy=work.model, kl_coef=0.0)
    module.configure_model()
    module.train()
    tokenizer = module.policy_files.tokenizer
    for step in range(work.steps):
        group = _group(work, tokenizer, module.policy_files.config.get_text_config().vocab_size, step)
        turns().wait()
        packed_loss(module, group).backward()
        module.zero_grad()
        turns().tokens += sum(map(len, group.responses))
    turns().wait()


def theirs(work: Work) -> None:
    """Run a model of transformers, one padded pass per command."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    for step in range(work.steps):
        group = _group(work, tokenizer, model.config.get_text_config().vocab_size, step)
        turns().wait()
        padded_loss(model, group).backward()
        model.zero_grad()
        turns().tokens += sum(map(len, group.responses))
    turns().wait()


def _group(work: Work, tokenizer: Any, vocabulary: int, step: int) -> Group:
    rows = work.rows()[step * work.prompts : (step + 1) * work.prompts]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    return Group.random(prompts, work.group, work.new_tokens, vocabulary, step)


def packed_loss(module: GRPO, group: Group) -> Tensor:
    """Return the module's loss; metrics such as the entropy are computed too, as in training."""
    loss = module.loss(_minibatch(group))
    module.observations.add_to_loss(loss)
    module.observations.flush(module.total)
    return loss


def _minibatch(group: Group) -> Microbatch:
    import torch

    from rl_lightning.functional import batch_totals, token_weights
    from rl_lightning.types import Microbatch

    ids, mask, answers, advantages = group.tensors()
    owners = torch.arange(len(ids)) // group.size
    weights = token_weights(answers, owners, "seq_mean", batch_totals(answers, owners))
    return Microbatch(
        input_ids=ids,
        attention_mask=mask,
        response_mask=answers,
        group_ids=owners,
        temperature=1.0,
        weights=weights,
        advantages=advantages,
    )


def padded_loss(model: nn.Module, group: Group) -> Tensor:
    """Return the same loss, −1/B Σ_i 1/|y_i| Σ_t ρ A, from the logits of all tokens and all padding."""
    import torch

    ids, mask, answers, advantages = group.tensors()
    logits = model(input_ids=ids, attention_mask=mask.long()).logits
    width = answers.shape[1]
    every = logits[:, -width - 1 : -1].log_softmax(-1)
    with torch.no_grad():  # a metric that the module computes too
        _ = -(every.exp() * every).sum(-1)[answers].mean()
    logprobs = every.gather(2, ids[:, -width:, None]).squeeze(2)
    ratio = (logprobs - logprobs.detach()).exp()
    means = (ratio * advantages * answers).sum(1) / answers.sum(1)
    return -means.mean()
