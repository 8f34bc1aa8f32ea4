"""A language of 15 responses, small enough to enumerate: two letters and a stop token, at most 3 tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

LETTERS, STOP, LONGEST = (0, 1), 2, 3

#: Every response: the stop token ends it, or the cap does.
RESPONSES: list[tuple[int, ...]] = [
    (*letters, *end)
    for length in range(LONGEST)
    for letters in product(LETTERS, repeat=length)
    for end in ([(STOP,)] if length < LONGEST - 1 else [(0,), (1,), (STOP,)])
]


def prefix_number(letters: tuple[int, ...]) -> int:
    """Return the number of the state that the policy is in after some letters: a node of a binary tree."""
    number = 0
    for letter in letters:
        number = 2 * number + 1 + letter
    return number


class TabularPolicy(nn.Module):
    """A causal language model that is a table: the logits of the next token for each of the 7 prefixes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(7, 3, generator=generator, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Any:
        """Return logits (B, T, 3); the first token is the prompt."""
        state = torch.zeros_like(input_ids[:, 0])
        states = [state]
        for column in range(1, input_ids.shape[1]):
            state = (2 * state + 1 + input_ids[:, column].clamp(max=1)).clamp(max=6)
            states.append(state)
        return SimpleNamespace(logits=self.table[torch.stack(states, 1)])

    def probabilities(self) -> Tensor:
        """Return the probability of each response, (15,), with gradient."""
        logprobs = self.table.log_softmax(-1)
        return torch.stack(
            [sum(logprobs[prefix_number(y[:t]), token] for t, token in enumerate(y)).exp() for y in RESPONSES]
        )

    def states(self) -> Tensor:
        """Return how often a response passes through each prefix in expectation, (7,), with gradient."""
        visits = torch.zeros(7, dtype=torch.float64)
        for probability, y in zip(self.probabilities(), RESPONSES, strict=True):
            for t in range(len(y)):
                visits = visits + probability * nn.functional.one_hot(torch.tensor(prefix_number(y[:t])), 7)
        return visits


def rows(numbers: list[int]) -> dict[str, Tensor]:
    """Return ids, attention and response mask of some responses, after a prompt of one token."""
    ids = torch.zeros(len(numbers), 1 + LONGEST, dtype=torch.long)
    attention = torch.zeros_like(ids, dtype=torch.bool)
    for row, number in enumerate(numbers):
        length = len(RESPONSES[number])
        ids[row, 1 : 1 + length] = torch.tensor(RESPONSES[number])
        attention[row, : 1 + length] = True
    return {"input_ids": ids, "attention_mask": attention, "response_mask": attention[:, 1:]}


def token_logprobs(policy: TabularPolicy, numbers: list[int]) -> Tensor:
    """Return log π of every token, (B, 3), looked up one by one, without gradient."""
    logprobs = policy.table.detach().log_softmax(-1)
    result = torch.zeros(len(numbers), LONGEST, dtype=torch.float64)
    for row, number in enumerate(numbers):
        y = RESPONSES[number]
        for t, token in enumerate(y):
            result[row, t] = logprobs[prefix_number(y[:t]), token]
    return result


def slow_gradient(
    policy: TabularPolicy, numbers: list[int], weight: Callable[[int], float], gc: Callable[[int, int], float]
) -> Tensor:
    """Return Σ_i Σ_t w_i GC_{i,t} ∇ log π(y_{i,t}) in the table of logits, (7, 3): ∇ log π = onehot − π, token by token."""
    probs = policy.table.detach().softmax(-1)
    gradient = torch.zeros_like(probs)
    for row, number in enumerate(numbers):
        y = RESPONSES[number]
        for t, token in enumerate(y):
            state = prefix_number(y[:t])
            onehot = nn.functional.one_hot(torch.tensor(token), 3)
            gradient[state] += weight(row) * gc(row, t) * (onehot - probs[state])
    return gradient


def module_gradient(module: Any, policy: TabularPolicy, batch: Any) -> Tensor:
    """Return ∇J of a module's own objective in the table of logits of its policy, by autograd."""
    module.policy = policy
    policy.table.grad = None
    module.weigh(batch, module.objective(batch, module.logprobs(batch))).backward()
    return -policy.table.grad.clone()
