"""RewardDataModule: what it samples, keeps, pairs and serves."""

import json
import logging
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from rl_lightning.algorithms import DPO, RFT, OptimizerOptions, RewardModel
from rl_lightning.callbacks import GroupNormalize, OverlongShaping, RejectionSampling
from rl_lightning.data import ChainSum, FileExamples, PairOptions, PromptOptions, RewardDataModule
from rl_lightning.data.offline.written import last_turn
from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import ClassifierFiles, LoadOptions, PolicyFiles
from rl_lightning.rewards import RewardSpec
from rl_lightning.types import PreferenceBatch, Rollout
from tests.checks import assert_same, cases, holds_only_for
from tests.rewards_light import sum_of_digits
from tests.support import trainer
from tests.tiny import PAD, save_tiny_policy, tiny_model, tiny_tokenizer
from tests.unit.data import reward_ranks

DIGITS = [RewardSpec("tests.rewards_light.sum_of_digits")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory whose cache tests share that are about what is made of the samples."""
    return tmp_path_factory.mktemp("shared")


class Watch(pl.Callback):
    """Keeps every batch, of training and of validation."""

    def __init__(self):
        self.batches, self.held_out = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.held_out.append(batch)


class Counting(NativeGenerator):
    """Counts the responses that it is asked for."""

    asked = 0

    def generate(self, model, request, progress=None, finished=None):
        Counting.asked += len(request.streams)
        return super().generate(model, request, progress, finished)


def reward_data(**changes):
    options = {
        "prompts": ChainSum(train_size=20, val_size=6), "sampling": Sampling(max_new_tokens=7), "rewards": DIGITS,
        "group_size": 4, "batch_size": 6, "seed": 3,
    }  # fmt: skip
    return RewardDataModule(**(options | changes))


def fit(data, module, directory, *callbacks, **options):
    """Train on the data and return what was served."""
    watch = Watch()
    trainer(directory, [watch, *callbacks], online=False, **options).fit(module, datamodule=data)
    return watch


def dpo(policy, **options):
    return DPO(policy=policy, **options)


def texts(batch):
    """Return the prompts and responses of a batch."""
    tokenizer = tiny_tokenizer()
    split = batch.input_ids.shape[1] - batch.response_length
    prompts = batch.input_ids[:, :split].masked_fill(~batch.attention_mask[:, :split], PAD)
    responses = batch.response_ids.masked_fill(~batch.response_mask, PAD)
    decode = [tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True) for ids in (prompts, responses)]
    return list(zip(*decode, strict=True))


# --------------------------------------------------------------------------------------------------------- pairs


def test_rows_are_chosen_and_rejected_in_turn(tiny_policy, place):
    """By the reward, computed here from the text; a step's weights are those of 2B rows; margins are gaps."""
    watch = fit(reward_data(microbatch_size=2), dpo(tiny_policy), place)
    assert [len(batch) for batch in watch.batches] == [4] * 9
    assert [batch.ends_step for batch in watch.batches] == [False, False, True] * 3
    served = []
    for batch in watch.batches:
        rows = texts(batch)
        for chosen, rejected, margin in zip(rows[0::2], rows[1::2], batch.margins.tolist(), strict=True):
            assert chosen[0] == rejected[0]
            gap = sum_of_digits(response=chosen[1]) - sum_of_digits(response=rejected[1])
            assert gap == margin > 0
            served.append(chosen[0])
        assert torch.equal(batch.group_ids[0::2], batch.group_ids[1::2])
        assert_same(batch.weights.sum(1), torch.full((4,), 1 / 12, dtype=torch.float64))
        assert_same(batch.weights, batch.response_mask / batch.lengths[:, None].double() / 12)
    assert len(set(served)) == len(served) == 18  # 20 pairs in steps of 6: the rest waits


def of_the_policy(module, rows):
    return module.logprobs(rows, tiny_model().double()).detach()


def untempered(module, rows):
    rows.temperature = 1.0
    return of_the_policy(module, rows)


def shifted(module, rows):
    rows.input_ids = rows.input_ids.roll(1, 1)
    return of_the_policy(module, rows)


@holds_only_for(of_the_policy, untempered=untempered, shifted=shifted)
def test_reference_logprobs_are_those_of_the_frozen_policy(reference):
    """In training, which has changed the policy, against a forward pass over each batch here."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        policy = save_tiny_policy(Path(directory) / "policy")
        module = dpo(policy, load=LoadOptions(dtype="float64"), optimizer=OptimizerOptions(lr=0.1))
        data = reward_data(
            sampling=Sampling(max_new_tokens=7, temperature=1.5), microbatch_size=3, train_temperature="as_sampled"
        )
        watch = fit(data, module, directory, max_epochs=2)
    assert len(watch.batches) == 12
    assert all(not name.startswith("reference") for name, _ in module.named_parameters())
    for batch in watch.batches:
        expected = reference(module, batch)
        assert_same(
            torch.where(batch.response_mask, batch.ref_logprobs, 0), torch.where(batch.response_mask, expected, 0)
        )


def test_another_reference_is_used(tiny_policy, place, tmp_path):
    other = tiny_model()
    torch.nn.init.normal_(other.lm_head.weight)
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    own = fit(reward_data(), dpo(tiny_policy), place).batches[0]
    changed = fit(reward_data(), dpo(tiny_policy, reference=str(tmp_path / "other")), place).batches[0]
    assert torch.equal(own.input_ids, changed.input_ids)
    assert_same(changed.ref_logprobs, dpo(tiny_policy).logprobs(changed, other).detach(), 1e-5)
    assert float((own.ref_logprobs - changed.ref_logprobs).abs().max()) > 0.1


def test_more_pairs_a_prompt_and_a_smallest_gap(tiny_policy, place):
    data = reward_data(pairs=PairOptions(pairs_per_prompt=3, min_gap=2.0), batch_size=1)
    fit(data, dpo(tiny_policy), place, max_steps=1)
    assert 20 < len(data.table) <= 60
    assert float(data.table.margins.min()) > 2
    assert len(data.table.rows) == 2 * len(data.table)


def test_callbacks_change_the_rewards_that_pairs_are_made_by_without_sampling_again(tiny_policy, tmp_path):
    generator = Counting()
    plain = reward_data(generator=generator)
    fit(plain, dpo(tiny_policy), tmp_path, max_steps=1)
    before = Counting.asked
    shaped = reward_data(generator=generator)
    fit(shaped, dpo(tiny_policy), tmp_path, OverlongShaping(cache_length=6, weight=50.0), max_steps=1)
    assert Counting.asked == before
    assert shaped.table.rows.lengths[0::2].sum() < plain.table.rows.lengths[0::2].sum()


# --------------------------------------------------------------------------------------------------------- cache


@pytest.fixture(scope="module")
def asked(tiny_policy, tmp_path_factory):
    """Tells how many responses are sampled for a table of some settings; those of no changes are there."""
    place = tmp_path_factory.mktemp("settings")

    def of(**changes):
        Counting.asked = 0
        few = ChainSum(train_size=6, val_size=2)
        data = reward_data(prompts=few, generator=Counting(), batch_size=1, **changes)
        fit(data, dpo(tiny_policy), place, max_steps=1)
        return Counting.asked

    assert of() == 24
    return of


def test_the_same_settings_sample_nothing(asked):
    assert asked() == 0
    assert asked(pairs=PairOptions(min_gap=1.0), evaluation=None, microbatch_size=1) == 0


#: Every setting that a table follows from.
ANEW = {
    "group_size": 3, "max_prompts": 5, "seed": 4, "sampling": Sampling(max_new_tokens=6), "correct_threshold": 3.0,
    "temperature": Sampling(max_new_tokens=7, temperature=0.9), "top_k": Sampling(max_new_tokens=7, top_k=9),
    "rewards": [RewardSpec(DIGITS[0].function, arguments={"modulus": 7})], "weight": [RewardSpec(DIGITS[0].function, weight=2.0)],
}  # fmt: skip
FIELDS = {"temperature": "sampling", "top_k": "sampling", "weight": "rewards"}


@pytest.mark.parametrize(
    "name", cases(ANEW, soon=lambda name: name in ("group_size", "seed", "temperature", "rewards", "correct_threshold"))
)
def test_other_settings_sample_anew(name, asked):
    assert asked(**{FIELDS.get(name, name): ANEW[name]}) == {"group_size": 18, "max_prompts": 20}.get(name, 24)


def test_another_sampler_or_place_samples_anew(asked, other_policy, tmp_path):
    assert asked(sampler=other_policy) == 24
    assert asked(cache_dir=str(tmp_path / "elsewhere")) == 24
    assert asked() == 0


def test_a_reward_model_that_was_trained_on_scores_anew(tiny_policy, tmp_path):
    judge = str(tmp_path / "judge")
    classifier = ClassifierFiles(tiny_policy).load_scorer()

    def asked():
        classifier.save_pretrained(judge)
        tiny_tokenizer().save_pretrained(judge)
        Counting.asked = 0
        data = reward_data(generator=Counting(), rewards=[RewardSpec(model=judge)], batch_size=1)
        fit(data, dpo(tiny_policy), tmp_path, max_steps=1)
        return Counting.asked

    assert [asked(), asked()] == [80, 0]
    torch.nn.init.normal_(classifier.score.weight)
    assert asked() == 80
    with pytest.raises(UserError, match="is a sequence classifier, which answers nothing"):
        fit(reward_data(), RewardModel(judge), tmp_path)
    fit(reward_data(sampler=tiny_policy), RewardModel(judge), tmp_path)


def test_a_cached_run_is_the_same_run(tiny_policy, tmp_path):
    runs = []
    for _ in range(2):
        module = dpo(tiny_policy, optimizer=OptimizerOptions(lr=0.1))
        watch = fit(reward_data(), module, tmp_path)
        runs.append(([batch.input_ids.tolist() for batch in watch.batches], module.state_dict(), torch.rand(1)))
        torch.manual_seed(0)
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_a_table_whose_sampling_was_cut_is_gone_on_with(tiny_policy, tmp_path, caplog):
    """Two chunks of three are there, as a signal or a kill leaves them: `test_faults` sends both."""

    class Cut(Counting):
        def generate(self, model, request, progress=None, finished=None):
            if Counting.asked == at:
                raise KeyboardInterrupt
            return super().generate(model, request, progress, finished)

    Counting.asked, at = 0, 64
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(reward_data(generator=Cut()), dpo(tiny_policy), tmp_path, max_steps=1)
    assert len(list((tmp_path / "cache").glob("*.parts/*.pt"))) == 2
    at = None
    with caplog.at_level(logging.INFO):
        again = fit(reward_data(generator=Cut()), dpo(tiny_policy), tmp_path, max_steps=1)
    assert "2 of 3 chunks of train responses are kept from before" in caplog.text and Counting.asked == 80
    whole = fit(reward_data(), dpo(tiny_policy), tmp_path / "whole", max_steps=1)
    assert torch.equal(again.batches[0].input_ids, whole.batches[0].input_ids)
    assert torch.equal(again.batches[0].margins, whole.batches[0].margins)


@pytest.mark.parametrize("damage", cases([b"", b"garbage", None], soon=lambda damage: damage is None))
def test_a_damaged_file_is_a_warning_and_made_anew(damage, tiny_policy, tmp_path, caplog):
    whole = fit(reward_data(), dpo(tiny_policy), tmp_path)
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.name.split("-")[0] for file in files] == ["references", "responses"]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage is None else damage)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = fit(reward_data(), dpo(tiny_policy), tmp_path)
    assert sum("made anew" in record.getMessage() for record in caplog.records) == 2
    for one, other in zip(whole.batches, again.batches, strict=True):
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.ref_logprobs, other.ref_logprobs)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fit(reward_data(), dpo(tiny_policy), tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert any(f"taken from {files[1]}" in line for line in said) and not any("made anew" in line for line in said)


def test_a_fingerprint_is_of_weights_and_tokenizer_but_not_of_the_place(tmp_path):
    first = PolicyFiles(save_tiny_policy(tmp_path / "first")).fingerprint
    assert PolicyFiles(save_tiny_policy(tmp_path / "second")).fingerprint == first
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-4
    other.save_pretrained(tmp_path / "second")
    assert PolicyFiles(str(tmp_path / "second")).fingerprint != first
    save_tiny_policy(tmp_path / "third")
    (tmp_path / "third" / "README.md").write_text("words")
    assert PolicyFiles(str(tmp_path / "third")).fingerprint == first
    config = tmp_path / "third" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<unk>", "<what>"))
    assert PolicyFiles(str(tmp_path / "third")).fingerprint != first


def test_two_ranks_have_one_table_and_share_every_step(ranks, tiny_policy, tmp_path):
    """More prompts than go into one chunk, so that both ranks sample."""
    both = ranks(reward_ranks.on_this, tiny_policy, tmp_path)
    data, threads = reward_ranks.many(), torch.get_num_threads()
    torch.set_num_threads(1)  # as the two processes have: the last bit of a matrix product depends on it
    try:
        one = fit(data, dpo(tiny_policy), tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    assert all(rank["asked"] > 0 for rank in both) and sum(rank["asked"] for rank in both) == 400 * 3
    assert both[0]["table"] == both[1]["table"] == reward_ranks.table_of(data)
    for step, batch in enumerate(one.batches):
        halves = [rank["steps"][step] for rank in both]
        assert halves[0] + halves[1] == batch.group_ids[0::2].tolist()
        assert len(halves[0]) == len(halves[1])


# --------------------------------------------------------------------------------------------- files


PAIRS = [
    {"prompt": f"{n}+1=", "good": f"{n + 1}#", "bad": f"{n}#", "gap": n / 2} for n in range(1, 6)
]  # fmt: skip


def pair_files(path, rows, margin="gap", **options):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileExamples(
        train=str(path), val=str(path), answer_column=None, response_column="good", rejected_column="bad",
        margin_column=margin,
    )  # fmt: skip
    return RewardDataModule(prompts=source, origin="files", batch_size=5, seed=0, **options)


def test_pairs_from_files(tiny_policy, tmp_path):
    data = pair_files(tmp_path / "pairs.jsonl", PAIRS)
    (batch,) = fit(data, dpo(tiny_policy), tmp_path).batches
    rows = texts(batch)
    served = {
        (prompt, good, bad, gap)
        for (prompt, good), (_, bad), gap in zip(rows[0::2], rows[1::2], batch.margins.tolist(), strict=True)
    }
    assert served == {(row["prompt"], row["good"], row["bad"], row["gap"]) for row in PAIRS}
    assert batch.ref_logprobs is not None and batch.temperature == 1.0
    assert bool((batch.response_ids.gather(1, batch.lengths[:, None] - 1) == 1).all())  # each ends


def test_pairs_without_margins_have_none(tiny_policy, tmp_path):
    data = pair_files(tmp_path / "pairs.jsonl", PAIRS, margin=None)
    (batch,) = fit(data, dpo(tiny_policy), tmp_path).batches
    assert batch.margins is None
    data = pair_files(tmp_path / "pairs.jsonl", PAIRS, margin=None)
    with pytest.raises(UserError, match="have no margins"):
        fit(data, RewardModel(tiny_policy, margin=1.0), tmp_path)


def test_one_text_twice_is_named_by_line_or_dropped(tiny_policy, tmp_path, caplog):
    rows = [*PAIRS, {**PAIRS[0], "bad": PAIRS[0]["good"]}]
    with pytest.raises(UserError, match=r"pairs\.jsonl:6: the chosen and the rejected response are the same text"):
        fit(pair_files(tmp_path / "pairs.jsonl", rows), dpo(tiny_policy), tmp_path)
    data = pair_files(tmp_path / "pairs.jsonl", rows, prompt_options=PromptOptions(on_bad="drop"))
    fit(data, dpo(tiny_policy), tmp_path)
    assert len(data.table) == 5
    assert "dropped 1 of 6 pairs" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gap": "much"}, r"pairs\.jsonl:1: column 'gap' is no finite number"),
        ({"gap": -1}, r"pairs\.jsonl:1: column 'gap' is -1"),
        ({"bad": ""}, r"pairs\.jsonl:1: column 'bad' is empty"),
        ({"bad": None}, r"pairs\.jsonl:1: column 'bad' is null"),
    ],
)
def test_bad_rows(change, message, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=message):
        fit(pair_files(tmp_path / "pairs.jsonl", [{**PAIRS[0], **change}]), dpo(tiny_policy), tmp_path)


def test_columns_that_mean_nothing_alone():
    with pytest.raises(UserError, match="rejected_column is set to 'bad' without response_column"):
        FileExamples(train="x.jsonl", rejected_column="bad")
    with pytest.raises(UserError, match="margin_column is set to 'gap' without rejected_column"):
        FileExamples(train="x.jsonl", response_column="good", margin_column="gap")


def test_a_source_without_pairs(tiny_policy, tmp_path):
    data = RewardDataModule(prompts=ChainSum(train_size=8, val_size=4), origin="files", batch_size=4)
    with pytest.raises(UserError, match="response_column and rejected_column"):
        fit(data, dpo(tiny_policy), tmp_path)


class Look(RolloutCallback):
    """Keeps the samples."""

    def on_rollout_end(self, trainer, module, rollout):
        self.rollout = rollout


def test_samples_from_files_are_scored_and_grouped_by_prompt(tiny_policy, tmp_path):
    rows = [
        {"prompt": prompt, "text": text} for prompt, text in (("1+1=", "9"), ("2=", "3"), ("1+1=", "12"), ("1+1=", "5"))
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileExamples(train=str(path), answer_column=None, response_column="text")
    data = RewardDataModule(prompts=source, origin="files", rewards=DIGITS, batch_size=1)
    accept, look = RejectionSampling(threshold=3.5, max_per_prompt=1), Look()
    (batch,) = fit(data, RFT(policy=tiny_policy), tmp_path, accept, look).batches
    assert look.rollout.rewards.tolist() == [9, 3, 3, 5]
    assert look.rollout.group_ids.tolist() == [0, 1, 0, 0]
    assert data.group_size == 3
    assert texts(batch) == [("1+1=", "9")]


# --------------------------------------------------------------------------------------------- epochs and evaluation


def test_every_epoch_has_an_order_of_its_own_and_the_rest_waits(tiny_policy, place):
    watch = fit(reward_data(), dpo(tiny_policy), place, max_epochs=3)
    pairs = [number for batch in watch.batches for number in batch.group_ids[0::2].tolist()]
    epochs = [pairs[first : first + 18] for first in (0, 18, 36)]
    assert all(len(set(epoch)) == 18 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = fit(reward_data(), dpo(tiny_policy), place, max_epochs=3)
    assert pairs == [number for batch in again.batches for number in batch.group_ids[0::2].tolist()]


def test_a_reward_model_is_evaluated_on_held_out_pairs(tiny_policy, place):
    module = RewardModel(tiny_policy)
    watch = fit(reward_data(), module, place, limit_val_batches=1.0)
    trained = {prompt for batch in watch.batches for prompt, _ in texts(batch)}
    (batch,) = watch.held_out
    rows = texts(batch)
    assert len(rows) == 12 and not trained & {prompt for prompt, _ in rows}
    for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True):
        assert chosen[0] == rejected[0] and sum_of_digits(response=chosen[1]) > sum_of_digits(response=rejected[1])
    Counting.asked = 0
    run = trainer(place, online=False, limit_val_batches=1.0)
    (metrics,) = run.validate(RewardModel(tiny_policy), datamodule=reward_data(generator=Counting()), verbose=False)
    assert Counting.asked == 24 and 0 <= metrics["val/accuracy"] <= 1


def test_dpo_is_measured_on_held_out_pairs_and_by_sampling(tiny_policy, place):
    watch = fit(reward_data(), dpo(tiny_policy), place, limit_val_batches=1.0)
    pairs, answers = watch.held_out
    assert isinstance(pairs, PreferenceBatch) and len(pairs) == 12 and pairs.ref_logprobs.isfinite().all()
    trained = {prompt for batch in watch.batches for prompt, _ in texts(batch)}
    assert not trained & {prompt for prompt, _ in texts(pairs)}
    assert isinstance(answers, Rollout) and len(answers) == 6 * 8


# --------------------------------------------------------------------------------------------------- mistakes


def test_demonstrations_join_the_samples(tiny_policy, tmp_path):
    """As if accepted, and counted among all."""
    prompts = ChainSum(train_size=20, val_size=6, slip=0.0)
    tables = {}
    for mix in (False, True):
        data = reward_data(prompts=prompts, mix_demonstrations=mix, batch_size=1)
        fit(data, RFT(policy=tiny_policy), tmp_path, RejectionSampling(threshold=8.0), max_steps=1)
        tables[mix] = data.table
    added = len(tables[True]) - len(tables[False])
    assert added == 20 and tables[True].rows.responses[-20:] == [example.response for example in prompts.load("train")]
    assert torch.equal(tables[True].rows.advantages[-20:], tables[True].rows.response_mask[-20:].float())
    shares = {mix: table.weight_scale("seq_mean") for mix, table in tables.items()}
    assert shares == {False: len(tables[False]) / 80, True: len(tables[True]) / 100}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size=1 makes no pairs"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"max_prompts": 0}, "max_prompts must be at least 1"),
        ({"origin": "files", "group_size": 4}, "group_size is set, but with origin: files"),
        (
            {"origin": "files", "group_size": None, "sampler": "embedded"},
            "sampler is set, but with origin: files",
        ),
        ({"origin": "files", "group_size": None, "max_prompts": 3}, "max_prompts is set"),
        ({"origin": "files", "group_size": None, "pairs": PairOptions()}, "pairs is set"),
        ({"mix_demonstrations": True}, "mix_demonstrations is set, but DPO learns from preference pairs"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature: 0 makes the same response"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        (
            {"batch_size": 42, "microbatch_size": 21},
            r"batch_size=42 but there are only 20 pairs, fewer than a microbatch on every rank \(21\)",
        ),
        ({"batch_size": 6, "microbatch_size": 4}, "microbatch_size=4 must divide"),
        ({"pairs": PairOptions(min_gap=1e6)}, "there are no train pairs: none of 20 prompts"),
        ({"sampler": "embedded"}, "sampler 'embedded' and policy .* have different tokenizers"),
    ],
)
def test_options_that_contradict(changes, message, tiny_policy, place):
    with pytest.raises(UserError, match=message):
        fit(reward_data(**changes), dpo(tiny_policy), place)


@pytest.mark.parametrize(
    ("make", "callbacks", "changes", "message"),
    [
        (DPO, [GroupNormalize()], {}, "GroupNormalize makes advantages, and preference pairs have none"),
        (RFT, [RejectionSampling()], {"pairs": PairOptions()}, "pairs is set, but RFT learns from samples"),
        (RFT, [], {}, "RFT needs advantages"),
    ],
)
def test_what_the_algorithm_has_no_use_for(make, callbacks, changes, message, tiny_policy, place):
    with pytest.raises(UserError, match=message):
        fit(reward_data(**changes), make(policy=tiny_policy), place, *callbacks)


def test_demonstrations_that_are_not_there(tiny_policy, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}="}) + "\n" for n in range(9)))
    data = reward_data(prompts=FileExamples(train=str(path), answer_column=None), mix_demonstrations=True, batch_size=1)
    with pytest.raises(UserError, match="mix_demonstrations: the source has no demonstrations"):
        fit(data, RFT(policy=tiny_policy), tmp_path, RejectionSampling(threshold=1.0))


@pytest.mark.parametrize(
    ("learnt", "turn"),
    [
        (None, [1, 2, 3, 4, 5]),
        ([True] * 5, [1, 2, 3, 4, 5]),
        ([True, False, False, True, True], [4, 5]),
        ([True, False, True, True, False], [3, 4]),
        ([False] * 5, [1, 2, 3, 4, 5]),
    ],
)
def test_rewards_judge_the_last_turn_of_a_written_conversation(learnt, turn):
    assert last_turn([1, 2, 3, 4, 5], learnt) == turn
