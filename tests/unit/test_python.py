"""From Python: a Trainer with what the command line gives, answers in one line, and models from where a run left them."""

import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

import rl_lightning as rl
from rl_lightning.algorithms import PolicyModule
from rl_lightning.callbacks import DurableLogs, GracefulStop, HFExport, RNGState, RunCard, RunLock
from rl_lightning.data import ChainSum
from rl_lightning.errors import UserError
from rl_lightning.strategies import AtomicCheckpointIO

QUICK = {"accelerator": "cpu", "limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False}


def data():
    prompts = ChainSum(train_size=64, val_size=8, test_size=8)
    return rl.RolloutDataModule(prompts=prompts, prompts_per_rollout=2, group_size=4, sampling={"max_new_tokens": 12})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one rollout, and the module as it left it."""
    root = tmp_path_factory.mktemp("run")
    module = rl.GRPO(policy="embedded", kl_coef=0.0, optimizer={"lr": 1e-3})
    trainer = rl.Trainer(
        max_epochs=1, default_root_dir=root, callbacks=[rl.GroupNormalize(), HFExport()], logger=False, **QUICK
    )
    trainer.fit(module, data())
    return root, module


def test_a_run_has_what_the_command_line_gives(tmp_path):
    trainer = rl.Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu")
    kinds = {type(one) for one in trainer.callbacks}
    assert {RNGState, RunCard, RunLock, DurableLogs, GracefulStop, ModelCheckpoint} <= kinds
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert trainer.num_sanity_val_steps == 0 and trainer.log_every_n_steps == 1
    assert trainer.logger.log_dir.rstrip("/") == f"{tmp_path}/tensorboard"


def test_what_is_given_stands(tmp_path):
    own = ModelCheckpoint(tmp_path)
    trainer = rl.Trainer(callbacks=own, logger=False, default_root_dir=tmp_path, accelerator="cpu")
    assert [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)] == [own]
    assert trainer.loggers == []
    without = rl.Trainer(enable_checkpointing=False, logger=False, default_root_dir=tmp_path, accelerator="cpu")
    assert without.checkpoint_callbacks == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epoch": 3}, "Trainer has no option 'max_epoch'; did you mean 'max_epochs'"),
        ({"num_train_epochs": 3}, "did you mean 'max_epochs'"),
        ({"max_epochs": "three"}, "Trainer: max_epochs: expected int, not three"),
        ({"accelerator": "tpuu"}, "trainer: You selected an invalid accelerator name"),
        ({"callbacks": [rl.GroupNormalize]}, r"GroupNormalize is a class: make an object of it, GroupNormalize\(\)"),
        ({"callbacks": 3}, "Trainer: callbacks: expected Callback, not an object of class int"),
        ({"check_val_every_n_epoch": 0}, "limit_val_batches: 0 switches validation off"),
    ],
)
def test_a_mistake_ends_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        rl.Trainer(logger=False, **settings)
    assert "\n" not in str(caught.value)


def test_a_seed_that_was_set_stands(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    settings = {"logger": False, "default_root_dir": tmp_path, "accelerator": "cpu"}
    rl.Trainer(**settings)
    unseeded = torch.rand(1)
    pl.seed_everything(0, verbose=False)
    assert torch.equal(torch.rand(1), unseeded), "nobody set a seed: it is 0, as on the command line"
    pl.seed_everything(5, verbose=False)
    expected = torch.rand(1)
    pl.seed_everything(5, verbose=False)
    rl.Trainer(**settings)
    assert torch.equal(torch.rand(1), expected)
    rl.Trainer(seed=7, **settings)
    assert not torch.equal(torch.rand(1), expected)


def test_another_run_in_the_same_directory_is_refused_before_anything_is_written(run, tmp_path):
    first, second = (rl.Trainer(default_root_dir=tmp_path, logger=False, **QUICK) for _ in range(2))
    lock = next(one for one in first.callbacks if isinstance(one, RunLock))
    lock.acquire(first)
    try:
        with pytest.raises(UserError, match="is in use by"):
            second.fit(rl.GRPO(policy="embedded"), data())
    finally:
        lock.release(first)


def test_a_run_goes_on_from_its_last_checkpoint(run, tmp_path):
    root, _ = run
    module = rl.GRPO(policy="embedded", kl_coef=0.0, optimizer={"lr": 1e-3})
    keeps = ModelCheckpoint(root / "checkpoints", save_last=True)
    settings = {"default_root_dir": tmp_path, "logger": False, "callbacks": [rl.GroupNormalize(), keeps], **QUICK}
    trainer = rl.Trainer(max_epochs=1, **settings)
    trainer.fit(module, data(), ckpt_path="last")
    assert trainer.global_step == 1, "it had come that far already"
    with pytest.raises(UserError, match=r"ckpt_path: there is no checkpoint nowhere\.ckpt"):
        trainer.fit(module, data(), ckpt_path="nowhere.ckpt")
    with pytest.raises(UserError, match=r"ckpt_path last: there is no last\*\.ckpt"):
        rl.Trainer(default_root_dir=tmp_path / "new", logger=False, **QUICK).validate(module, data(), ckpt_path="last")


def test_a_checkpoint_says_what_to_make_it_of(run):
    root, trained = run
    path = root / "checkpoints" / "last.ckpt"
    loaded = rl.GRPO.load_from_checkpoint(path)
    assert loaded.kl_coef == 0.0 and loaded.optimizer_options.lr == 1e-3
    for name, weight in trained.policy.state_dict().items():
        assert torch.equal(weight, loaded.policy.state_dict()[name]), name
    assert rl.GRPO.load_from_checkpoint(path, kl_coef=0.5).kl_coef == 0.5


@pytest.mark.parametrize("place", ["checkpoints/last.ckpt", "hf", "."])
def test_a_trained_model_is_loaded_from_wherever_a_run_left_it(run, place):
    root, trained = run
    loaded = rl.load(root / place)
    assert type(loaded) is (rl.GRPO if place.endswith("ckpt") else PolicyModule)
    prompts = ["12+7=", "3+4+5="]
    assert loaded.generate(prompts, max_new_tokens=20) == trained.generate(prompts, max_new_tokens=20)
    base = PolicyModule(policy="embedded")
    base.configure_model()
    assert not torch.equal(loaded.policy.lm_head.weight, base.policy.lm_head.weight), "trained, not as it began"


def test_a_checkpoint_chooses_no_code_that_runs(run, tmp_path):
    checkpoint = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    for name in (
        "antigravity.GRPO",
        "os.system",
        "rl_lightning.data.RolloutDataModule",
        "rl_lightning.errors.UserError",
    ):
        torch.save(checkpoint | {"class_path": name}, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match="which is not loaded"):
            rl.load(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, "there is no .*model: give a checkpoint"),
        ("empty", "holds neither an exported model"),
        ("text", "is damaged or no checkpoint"),
    ],
)
def test_a_path_without_a_model_is_said_in_one_line(tmp_path, write, message):
    path = tmp_path / "model"
    if write == "empty":
        path.mkdir()
    elif write == "text":
        path.write_text(json.dumps({"weights": []}))
    with pytest.raises(UserError, match=message):
        rl.load(path)


# ----------------------------------------------------------------------------- answers


def test_the_answer_is_the_one_that_transformers_gives(run):
    root, trained = run
    tokenizer = AutoTokenizer.from_pretrained(root / "hf")
    model = AutoModelForCausalLM.from_pretrained(root / "hf")
    ids = tokenizer("12+7=", return_tensors="pt", add_special_tokens=True).input_ids
    while ids[0, -1] == tokenizer.eos_token_id:
        ids = ids[:, :-1]
    said = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert trained.generate("12+7=", max_new_tokens=20) == tokenizer.decode(said, skip_special_tokens=True)


def test_one_question_has_one_answer_and_a_list_has_a_list():
    module = rl.SFT(policy="embedded")
    one = module.generate("1+2=", max_new_tokens=8)
    assert isinstance(one, str)
    assert module.generate(["1+2="], max_new_tokens=8) == [one]
    drawn = module.generate("1+2=", max_new_tokens=8, samples=3, temperature=1.0, seed=4)
    assert len(drawn) == 3 and drawn == module.generate("1+2=", max_new_tokens=8, samples=3, temperature=1.0, seed=4)
    assert drawn != module.generate("1+2=", max_new_tokens=8, samples=3, temperature=1.0, seed=5)
    assert len(module.generate(["1+2=", "2+2="], max_new_tokens=8, samples=2, temperature=1.0)[1]) == 2


def test_asking_changes_neither_the_mode_nor_the_gradients():
    module = rl.SFT(policy="embedded")
    module.configure_model()
    module.policy.train()
    module.generate("1+2=", max_new_tokens=2)
    assert module.policy.training and torch.is_grad_enabled()
    assert all(weight.requires_grad for weight in module.policy.parameters())


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("1+1=", {"max_tokens": 3}, "Sampling has no option 'max_tokens'; did you mean 'max_new_tokens'"),
        ("1+1=", {"temperature": -1.0}, "temperature must be"),
        ("", {}, "is empty"),
        ({"role": "user", "content": "1+1="}, {}, "generate takes a text, chat messages or a list of these, not dict"),
        ([{"role": "user", "content": "1+1="}], {}, "no chat template, so it takes no messages"),
        ("1+1=", {"system_prompt": "Add."}, "without a chat template there is no place"),
        ("1+1=", {"max_new_tokens": 10_000}, "more than the 128 tokens of the policy's context"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_in_one_line(question, options, message):
    with pytest.raises(UserError, match=message):
        rl.SFT(policy="embedded").generate(question, **{"max_new_tokens": 4, **options})


def test_an_answer_without_a_length_fits_into_the_context():
    module = rl.SFT(policy="embedded")
    assert module.generate("1+2=") == module.generate("1+2=", max_new_tokens=120)


@pytest.mark.parametrize("arguments", [lambda m, d: (d, m), lambda m, d: (m,), lambda m, d: (m, [1])])
def test_a_fit_takes_an_algorithm_and_its_data(arguments, tmp_path):
    trainer = rl.Trainer(default_root_dir=tmp_path, logger=False, **QUICK)
    with pytest.raises(UserError, match="takes an algorithm and its DataModule, as in fit"):
        trainer.fit(*arguments(rl.SFT(policy="embedded"), data()))


def test_a_fit_that_fails_before_it_begins_lets_go_of_its_directory(tmp_path, monkeypatch):
    trainer = rl.Trainer(default_root_dir=tmp_path, logger=False, **QUICK)
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_: (_ for _ in ()).throw(TypeError("no such thing")))
    with pytest.raises(TypeError):
        trainer.fit(rl.SFT(policy="embedded"), data())
    lock = next(one for one in trainer.callbacks if isinstance(one, RunLock))
    assert not lock._files


def test_the_answer_in_the_documentation_is_the_one_that_is_given():
    for place in (rl.SFT.generate, rl.load):
        assert '.generate("3+9-4=")' in place.__doc__ and "'12;8#8'" in place.__doc__
    assert rl.SFT(policy="embedded").generate("3+9-4=") == "12;8#8"


def test_what_is_asked_without_a_run_is_answered_or_refused_in_one_line(run, caplog):
    policy = run[1]
    assert policy.generate([]) == []
    policy.generate("1+ü=", max_new_tokens=1)
    assert "the policy's tokenizer has no token for 'ü': the policy does not see it" in caplog.text
    caplog.clear()
    policy.generate("1+1=", max_new_tokens=1)
    assert "no token" not in caplog.text
    for make, message in (
        (lambda: rl.load(3), "load takes the path of a model, not 3"),
        (lambda: rl.GRPO("embedded"), r"GRPO takes its options by name, such as GRPO\(policy='embedded'\)"),
        (lambda: data().setup("fit"), "RolloutDataModule needs a Trainer"),
        (lambda: rl.DemonstrationDataModule().setup("fit"), "DemonstrationDataModule needs a Trainer"),
        (lambda: rl.RewardDataModule().setup("fit"), "RewardDataModule needs a Trainer"),
        (lambda: rl.Trainer(logger=False, accelerator="cpu").fit(), "not nothing, nothing"),
    ):
        with pytest.raises(UserError, match=message):
            make()
