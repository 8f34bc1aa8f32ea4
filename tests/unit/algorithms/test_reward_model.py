"""The reward model against the closed form, and what it says of held-out pairs."""

import dataclasses
import itertools
import math

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rl_lightning.algorithms import OptimizerOptions, RewardModel
from rl_lightning.algorithms.metrics import score_metrics
from rl_lightning.callbacks import HFExport
from rl_lightning.data.reward_models import ModelReward
from rl_lightning.errors import UserError
from rl_lightning.models import ClassifierFiles, Judge, LoadOptions, PolicyFiles, Text
from rl_lightning.padding import pad_left, pad_right
from rl_lightning.rewards import RewardSample, RewardSpec
from rl_lightning.types import Microbatch
from tests.checks import assert_same, gradient_difference, holds_only_for
from tests.pairs import part_of, random_pairs
from tests.support import trainer


def gradient(module, batch):
    """Return r(x, y), and the gradient of Σ w J in it."""
    scores = torch.randn(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    (-module.weigh(batch, batch.per_token(module.objective(batch, scores)))).backward()
    return scores.detach(), scores.grad


class Swapped(RewardModel):
    def objective(self, batch, scores):
        return super().objective(batch, scores.view(-1, 2).flip(1).flatten())


class NoMargin(RewardModel):
    def __init__(self, margin=0.0, **options):
        super().__init__(**options)


class NotCentred(RewardModel):
    def __init__(self, centring=0.0, **options):
        super().__init__(**options)


class CentredApart(RewardModel):
    """(r⁺)² + (r⁻)² for (r⁺ + r⁻)²."""

    def objective(self, batch, scores):
        return super().objective(batch, scores) + 2 * self.centring * batch.chosen(scores) * batch.rejected(scores)


@holds_only_for(RewardModel, swapped=Swapped, no_margin=NoMargin, not_centred=NotCentred, centred_apart=CentredApart)
def test_the_coefficient_is_the_closed_form(implementation):
    """∂J/∂r± = ±σ(r⁻ − r⁺ + c Δ) − 2λ (r⁺ + r⁻), a mean over pairs."""
    batch = random_pairs()
    scores, actual = gradient(implementation(margin=0.6, centring=0.05), batch)
    expected = torch.zeros_like(scores)
    for pair in range(8):
        chosen, rejected = float(scores[2 * pair]), float(scores[2 * pair + 1])
        chance = 1 / (1 + math.exp(chosen - rejected - 0.6 * float(batch.margins[pair])))
        expected[2 * pair] = (chance - 2 * 0.05 * (chosen + rejected)) / 8
        expected[2 * pair + 1] = (-chance - 2 * 0.05 * (chosen + rejected)) / 8
    assert_same(actual, expected)


def test_without_margins_in_the_data_none_can_be_kept():
    batch = random_pairs()
    batch.margins = None
    gradient(RewardModel(), batch)
    with pytest.raises(UserError, match="have no margins"):
        gradient(RewardModel(margin=1.0), batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"centring": -0.1}, "centring must be at least 0"),
        ({"reduction": "seq_sum"}, "leave it out"),
    ],
)
def test_senseless_options_are_refused_in_one_line(options, said):
    with pytest.raises(UserError, match=said) as error:
        RewardModel(**options)
    assert "\n" not in str(error.value)


def test_other_data_are_refused():
    fields = {item.name for item in dataclasses.fields(Microbatch)}
    rows = {name: value for name, value in vars(random_pairs()).items() if name in fields}
    with pytest.raises(UserError, match="RewardDataModule"):
        RewardModel().loss(Microbatch(**rows))


# ------------------------------------------------------------------------------------------------------------- the model


def loaded(policy, **options):
    module = RewardModel(policy=policy, load=LoadOptions(dtype="float64"), **options)
    module.configure_model()
    return module


def step_gradient(policy, size):
    module = loaded(policy, centring=0.1)
    for first in range(0, 8, size):
        module.loss(part_of(random_pairs(), range(first, first + size))).backward()
    return {name: parameter.grad for name, parameter in module.classifier.named_parameters()}


def test_microbatches_do_not_change_the_gradient(tiny_policy):
    whole = step_gradient(tiny_policy, 8)
    for size in (4, 1):
        assert gradient_difference(step_gradient(tiny_policy, size), whole) < 1e-12


def test_what_lies_in_the_padding_changes_nothing(tiny_policy):
    losses = []
    for fill in (0, 1, 7):
        module, batch = loaded(tiny_policy), random_pairs()
        batch.input_ids = torch.where(batch.attention_mask, batch.input_ids, fill)
        loss = module.loss(batch)
        loss.backward()
        losses.append((float(loss.detach()), module.classifier.score.weight.grad.clone()))
    assert losses[0][0] == losses[1][0] == losses[2][0]
    assert torch.equal(losses[0][1], losses[1][1]) and torch.equal(losses[0][1], losses[2][1])


def test_a_step_logs_means_over_its_pairs(tiny_policy):
    module, batch = loaded(tiny_policy), random_pairs()
    scores = module.scores(batch).detach()
    for first in (0, 4):
        module.observations.add_to_loss(module.loss(part_of(batch, range(first, first + 4))))
    logged = module.observations.flush(lambda totals: totals)
    chosen, rejected = scores[0::2], scores[1::2]
    assert logged["reward_model/accuracy"] == float((chosen > rejected).double().mean())
    assert logged["reward_model/margin"] == pytest.approx(float((chosen - rejected).mean()))
    assert logged["reward_model/reward_mean"] == pytest.approx(float(scores.mean()))
    assert logged["train/loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(chosen - rejected).mean()))


# --------------------------------------------------------------------------------------------------- a run, and its export


class GivenPairs(pl.LightningDataModule):
    """Serves the same pairs for every split."""

    def loader(self):
        return torch.utils.data.DataLoader([random_pairs(dtype=torch.float32)] * 6, batch_size=None)

    train_dataloader = val_dataloader = test_dataloader = loader

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def test_a_run_learns_the_pairs_and_exports_a_classifier_with_the_same_scores(tiny_policy, tmp_path):
    module = RewardModel(policy=tiny_policy, optimizer=OptimizerOptions(lr=1e-2))
    run = trainer(tmp_path, [HFExport()], online=False, max_epochs=5, limit_val_batches=1)
    run.fit(module, datamodule=GivenPairs())
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert metrics["val/accuracy"] == 1.0 and metrics["val/loss"] < 0.2 < math.log(2)
    (tested,) = run.test(module, datamodule=GivenPairs(), verbose=False)
    assert tested["test/accuracy"] == 1.0 and tested["test/reward_std"] > 0

    batch = random_pairs()
    with torch.no_grad():
        trained = module.eval().scores(batch)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    rows = [row[mask].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        assert_same(again(**padded).logits[:, 0], trained, relative=1e-5)
    untrained = RewardModel(policy=tiny_policy)
    untrained.configure_model()
    with torch.no_grad():
        assert float((untrained.eval().scores(batch) - trained).abs().max()) > 0.1
    assert RewardModel(policy=str(tmp_path / "hf")).classifier_files.is_classifier


def test_a_text_scores_as_its_tokens_did_in_training(tmp_path):
    """On the embedded tokenizer: prompt, response and end token from text are the ids that a sampled row has."""
    files = PolicyFiles("embedded")
    module = RewardModel()
    module.configure_model()
    texts = [Text("3+9-4=", "12;8#8", True), Text("1+2=", "3;3;3", False), Text("5+5+5+5=", "10;15;20#20", True)]
    prompt_ids, prompt_mask = pad_left([files.tokenizer(one.prompt).input_ids for one in texts], 0)
    responses = [files.tokenizer(one.response).input_ids + [files.tokenizer.eos_token_id] * one.ended for one in texts]
    response_ids, response_mask = pad_right(responses, 0)
    batch = dataclasses.replace(
        random_pairs(),
        input_ids=torch.cat([prompt_ids, response_ids], 1),
        attention_mask=torch.cat([prompt_mask, response_mask], 1),
    )
    with torch.no_grad():
        expected = module.eval().scores(batch)
    for part in module.hf_parts():
        part.save_pretrained(tmp_path)
    scores, _ = Judge(ClassifierFiles(str(tmp_path))).score(texts, "cpu")
    assert_same(torch.tensor(scores), expected, relative=1e-6)


# --------------------------------------------------------------------------------------------------------------- held out


def metrics_of(chosen, rejected, parts=(0, 3, 10)):
    metrics = score_metrics("val/")
    objective = torch.nn.functional.logsigmoid(chosen - rejected)
    for first, last in itertools.pairwise(parts):
        metrics.update(chosen=chosen[first:last], rejected=rejected[first:last], objective=objective[first:last])
    return {name: float(value) for name, value in metrics.compute().items()}


def test_held_out_numbers_by_hand():
    """Ten pairs that the model is σ(log 4) = 0.8 sure of, six of them rightly: 0.2 from calibrated."""
    sign = torch.tensor([1.0] * 6 + [-1.0] * 4)
    chosen, rejected = 1 + sign * math.log(4) / 2, 1 - sign * math.log(4) / 2
    found = metrics_of(chosen, rejected)
    assert found["val/accuracy"] == pytest.approx(0.6)
    assert found["val/calibration_error"] == pytest.approx(0.2, abs=1e-6)
    assert found["val/loss"] == pytest.approx(-0.6 * math.log(0.8) - 0.4 * math.log(0.2), rel=1e-6)
    assert found["val/reward_mean"] == pytest.approx(1.0)
    assert found["val/reward_std"] == pytest.approx(math.log(4) / 2, rel=1e-6)
    assert found == pytest.approx(metrics_of(chosen, rejected, parts=(0, 10)))


def test_a_tie_is_no_success():
    zero = torch.zeros(10)
    assert metrics_of(zero, zero)["val/accuracy"] == 0.0


# -------------------------------------------------------------------------------------------------- as a reward, from data


def test_a_reward_by_name_scores_samples(tiny_policy, tmp_path):
    module = RewardModel(policy=tiny_policy)
    module.configure_model()
    for part in module.hf_parts():
        part.save_pretrained(tmp_path)
    reward = ModelReward(RewardSpec(model=str(tmp_path)))
    samples = [RewardSample("1+2=", "3", None, {"truncated": cut}) for cut in (False, True)]
    expected, _ = Judge(ClassifierFiles(str(tmp_path))).score(
        [Text("1+2=", "3", True), Text("1+2=", "3", False)], "cpu"
    )
    assert reward(samples) == expected and expected[0] != expected[1]
