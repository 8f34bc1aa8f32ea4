"""Logits of responses, padded or not."""

import pytest
import torch

from rl_lightning.models import response_logits
from rl_lightning.models.families import accepts
from rl_lightning.models.forward import position_ids
from tests.checks import holds_only_for
from tests.tiny import PAD
from tests.unit.generation.families import family

PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12]]
RESPONSES = [[13, 14], [15], [16, 17, 3, 4]]


def padded(fill=PAD):
    """Return ids and mask: six prompt columns, four response columns."""
    rows = [[fill] * (6 - len(p)) + p + r + [fill] * (4 - len(r)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    mask = [[0] * (6 - len(p)) + [1] * len(p + r) + [0] * (4 - len(r)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    return torch.tensor(rows), torch.tensor(mask, dtype=torch.bool)


def from_the_left_edge(mask):
    return torch.arange(mask.shape[1]).expand(mask.shape)


def one_later(mask):
    return mask.long().cumsum(1)


@holds_only_for(position_ids, from_the_left_edge=from_the_left_edge, one_later=one_later)
def test_positions_count_real_tokens(implementation):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    assert implementation(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3], [0, 0, 0, 0, 0]]


def without_positions(model, ids, mask, length):
    with torch.no_grad():
        return model(ids, attention_mask=mask.long(), position_ids=from_the_left_edge(mask)).logits[:, -length - 1 : -1]


def one_token_late(model, ids, mask, length):
    with torch.no_grad():
        return model(ids, attention_mask=mask.long(), position_ids=position_ids(mask)).logits[:, -length:]


def without_mask(model, ids, mask, length):
    with torch.no_grad():
        return model(ids, position_ids=position_ids(mask)).logits[:, -length - 1 : -1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "lfm2", "falcon_h1", "mamba"])
@pytest.mark.parametrize("fill", [PAD, 9])
def test_padding_changes_no_logits(name, fill):
    check_padding(response_logits, name, fill)


@holds_only_for(
    response_logits, without_positions=without_positions, one_token_late=one_token_late, without_mask=without_mask
)
def test_padding_changes_no_logits_and_this_is_no_accident(implementation):
    # A rotary model sees differences of positions only, so the one with learned positions is the witness.
    check_padding(implementation, "gpt2", PAD)


def check_padding(implementation, name, fill):
    model = family(name)
    with torch.no_grad():
        logits = implementation(model, *padded(fill), 4)
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            alone = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            difference = float((logits[row, : len(response)] - alone).abs().max())
            assert difference < 1e-5, f"row {row} differs by {difference:.3g}"
    assert logits.shape == (3, 4, 18)


def test_logits_that_nobody_reads_are_not_computed():
    widths = []
    hook = family("llama").lm_head.register_forward_hook(lambda _, inputs, output: widths.append(output.shape[1]))
    with torch.no_grad():
        response_logits(family("llama"), *padded(), 4)
    hook.remove()
    assert widths == [5]


def test_families_differ_in_what_they_accept():
    assert accepts(family("llama"), "position_ids") and not accepts(family("mamba"), "position_ids")
