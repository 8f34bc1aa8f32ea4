"""The command line as people use it: every shipped YAML, the obvious mistakes, stopping and going on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_lightning.cli import main, run
from tests.checks import cases
from tests.tiny import halved

ROOT = Path(__file__).parents[2]
ALGORITHMS = sorted(path for path in (ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))
RECIPES = sorted((ROOT / "configs" / "recipe").glob("*.yaml"))
#: One of each kind; the other algorithms differ from one of these in their objective or their options.
KINDS = {"sft", "rft", "rft_online", "dpo", "reward_model", "ppo", "grpo", "dapo", "gspo", "distillation", "kto"}

#: Makes any shipped config small.
SMALL = [
    "--data.prompts.init_args.train_size=24", "--data.prompts.init_args.val_size=4",
    "--data.prompts.init_args.test_size=4", "--data.sampling.max_new_tokens=6", "--data.evaluation.samples_per_prompt=2",
    "--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.devices=1",
]  # fmt: skip
SMALL_SIZES = {
    "DemonstrationDataModule": ["--data.batch_size=8"],
    "RewardDataModule": ["--data.batch_size=8", "--data.max_prompts=null", "--data.group_size=4"],
    "RolloutDataModule": ["--data.prompts_per_rollout=4", "--data.group_size=2"],
}
#: What single configs need besides, such as answers of both kinds where groups without them are dropped.
SMALL_OF = {
    "dapo": [
        "--data.minibatch_size=4", "--data.sampling.max_new_tokens=12", "--data.correct_threshold=6.5",
        "--data.rewards=[{function: tests.rewards_for_runs.length}]",
    ],
    "dppo": ["--data.minibatch_size=4"],
    "reinforce_plus_plus": ["--data.group_size=1"],
    "distillation": ["--data.group_size=1"],
}  # fmt: skip
SMALL_OF |= {name: ["--data.minibatch_size=4"] for name in ("gspo", "cispo", "sapo")}
SMALL_OF |= {
    name: ["--data.rewards=[{function: tests.rewards_for_runs.length}]"]
    for name in ("dpo", "rft", "ipo", "simpo", "orpo", "robust_dpo", "conservative_dpo", "kto")
}


@pytest.fixture(autouse=True)
def _clean_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("by", cases(["command line", "overlay"], soon=lambda by: by == "overlay"))
def test_rewards_that_are_named_have_no_option_of_those_whose_places_they_take(by, tmp_path, capsys):
    """The second of the configuration's has the weight -0.05; the first of DAPO's has an argument."""
    rewards = [{"function": f"rl_lightning.rewards.functions.{name}"} for name in ("final_answer", "compression_ratio")]
    given = f"--data.rewards={json.dumps(rewards)}"
    if by == "overlay":
        (tmp_path / "overlay.yaml").write_text(json.dumps({"data": {"init_args": {"rewards": rewards}}}))
        given = f"--config={tmp_path / 'overlay.yaml'}"
    for name in ("reward_model", "dapo"):
        with pytest.raises(SystemExit):
            run(["fit", f"--config={ROOT / 'configs' / name}.yaml", given, "--print_config"])
        found = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["rewards"]
        assert [one["function"] for one in found] == [one["function"] for one in rewards]
        assert [(one["weight"], one["arguments"]) for one in found] == [(1.0, {}), (1.0, {})]


def small(config: Path, policy: str, directory: Path) -> list[str]:
    data = yaml.safe_load(config.read_text())["data"]["class_path"].rsplit(".", 1)[1]
    sizes = [*SMALL_SIZES[data], *SMALL_OF.get(config.stem, [])]
    sizes += [f"--data.sampler={policy}"] if config.stem == "reward_model" else []
    sizes += [f"--model.teacher={policy}"] if config.stem == "distillation" else []
    return [f"--model.policy={policy}", f"--trainer.default_root_dir={directory}", *SMALL, *sizes]


#: YAMLs whose data, callbacks and models are those of others.
ALIKE = ("dapo", "gspo", "rft", "rft_online", "reward_model", "distillation", "kto")


# A reward model answers nothing: see test_reward_model.py.
@pytest.mark.parametrize(
    "config",
    cases(
        [p for p in ALGORITHMS if p.stem != "reward_model"],
        soon=lambda path: path.stem in KINDS and path.stem not in ALIKE,
    ),
    ids=lambda path: path.stem,
)
def test_every_config_fits_and_exports(config, tiny_policy, tmp_path, capsys):
    arguments = [f"--config={config}", *small(config, tiny_policy, tmp_path)]
    module = run(["fit", *arguments, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]).model
    assert "algorithm" in capsys.readouterr().out  # the run card

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("3+9-4=", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, module.policy.eval()(ids).logits)

    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert {"train/loss", "train/lr", "policy/entropy", "val/pass@1", "val/pass@2", "val/reward_mean"} <= set(
        tags["scalars"]
    )
    assert "val/samples/text_summary" in tags["tensors"]


# Neither an algorithm nor its data have a part in it: training has evaluated each kind.
@pytest.mark.parametrize(
    "config",
    cases([p for p in ALGORITHMS if p.stem != "reward_model"], soon=lambda path: path.stem == "dpo"),
    ids=lambda path: path.stem,
)
def test_every_config_is_tested_and_answers(config, tiny_policy, tmp_path):
    arguments = [f"--config={config}", *small(config, tiny_policy, tmp_path)]
    metrics = run(["test", *arguments]).trainer.callback_metrics
    assert 0 <= float(metrics["test/pass@1"]) <= float(metrics["test/pass@2"]) <= 1

    run(["predict", *arguments])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 2
    assert {"prompt", "response", "answer", "reward", "correct", "length", "truncated"} <= lines[0].keys()


def few(overlays):
    """Return overlays × YAMLs: each overlay on GRPO's at once, all others slowly."""
    return cases(overlays, ALGORITHMS, soon=lambda overlay, config: config.stem == "grpo")


@pytest.mark.parametrize(("overlay", "config"), few(OVERLAYS), ids=lambda path: path.stem)
def test_every_overlay_parses_on_every_config(overlay, config, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["fit", f"--config={config}", f"--config={overlay}", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    expected = yaml.safe_load(overlay.read_text())["trainer"]
    assert holds(printed["trainer"], expected)


def on_its_base(recipe: Path) -> Path:
    """Return the configuration that a recipe's first line puts it on."""
    return ROOT / "configs" / f"{recipe.read_text().splitlines()[0].split('--config ')[1].strip()}.yaml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_changes_its_base_and_nothing_says_that_it_does_not(recipe, capsys, caplog):
    assert len(re.findall("^#", recipe.read_text(), re.M)) == 3, "three lines of text"
    with pytest.raises(SystemExit):
        run(["fit", f"--config={on_its_base(recipe)}", f"--config={recipe}", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    expected = yaml.safe_load(recipe.read_text())
    assert holds(printed["model"]["init_args"], expected.get("model", {}).get("init_args", {}))
    assert "takes the place" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(recipe, tiny_policy, tmp_path):
    base = on_its_base(recipe)
    sizes = ["--data.minibatch_size=4"] if base.stem not in ("dpo", "simpo") else []
    sizes += ["--data.group_size=4"] if base.stem in ("grpo", "gspo", "cispo") else []
    length = ["--data.rewards=[{function: tests.rewards_for_runs.length}]", "--data.correct_threshold=6.5"]
    arguments = [f"--config={base}", f"--config={recipe}", *small(base, tiny_policy, tmp_path), *sizes, *length]
    cli = run(["fit", *arguments, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"])
    assert cli.trainer.global_step > 0
    assert cli.model.finite


def holds(whole, part):
    """Tell whether a part of a configuration is in a whole one, which says what the part leaves open."""
    if not isinstance(part, dict):
        return whole == part
    return isinstance(whole, dict) and all(name in whole and holds(whole[name], value) for name, value in part.items())


def test_an_interpolation_follows_an_override(capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--config=configs/grpo.yaml", "--trainer.default_root_dir=runs/elsewhere", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["logger"]["init_args"]["save_dir"] == "runs/elsewhere"


def test_online_curves_and_tables(tiny_policy, tmp_path):
    config = ROOT / "configs" / "grpo.yaml"
    extra = ["--data.epochs_per_rollout=2", "--data.microbatch_size=4", "--trainer.limit_val_batches=0"]
    # A random policy never answers correctly; any reward that varies will do.
    extra += [
        "--data.rewards=[{function: tests.rewards_for_runs.length}]",
        "--model.optimizer.lr=0.01",
    ]
    run(["fit", f"--config={config}", *small(config, tiny_policy, tmp_path), *extra])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = {
        "train/loss", "train/grad_norm", "policy/entropy", "policy/approx_kl", "policy/ratio_mean", "policy/ess",
        "policy/clip_fraction_low", "policy/clip_fraction_high", "kl/k1", "kl/k3", "rollout/reward_mean",
        "rollout/reward_std", "rollout/length_mean", "rollout/truncated_fraction", "rollout/all_wrong_fraction",
        "rollout/all_right_fraction", "time/generate_s", "time/reward_s", "time/score_s", "time/train_s",
        "speed/tokens_per_s",
    }  # fmt: skip
    assert expected <= set(events.Tags()["scalars"])
    assert {"rollout/reward", "rollout/length", "policy/ratio"} <= set(events.Tags()["histograms"])
    table = events.Tensors("rollout/samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table.startswith("| prompt | gold | response | length | cut | reward | advantage |")
    # One point an optimizer step; the first step of a rollout is on-policy, the second is not.
    ratios = [event.value for event in events.Scalars("policy/ratio_mean")]
    assert len(ratios) == 4
    assert ratios[0] == ratios[2] == 1.0 != ratios[1]


@pytest.mark.parametrize(
    ("config", "row", "options"),
    [
        ("sft", {"messages": [{"role": "user", "content": "{n}+1="}, {"role": "assistant", "content": "{m}#{m}"}]}, []),
        ("dpo", {"prompt": "{n}+1=", "chosen": "{m}#{m}", "rejected": "#{n}"}, []),
        # `test_starts` has these two.
        pytest.param("reward_model", {"chosen": "{n}+1= {m}", "rejected": "{n}+1= {n}"}, [], marks=pytest.mark.slow),
        pytest.param("rft", {"prompt": "{n}+1=", "completion": "{m}#{m}", "label": True}, [], marks=pytest.mark.slow),
        ("grpo", {"question": "{n}+1=", "answer": "#### {m}"}, ["--data.prompts_per_rollout=4", "--data.group_size=2"]),
    ],
)
def test_one_line_is_enough_for_a_file(config, row, options, tiny_policy, tmp_path):
    file = tmp_path / "rows.jsonl"
    text = json.dumps(row)
    file.write_text("".join(f"{text.replace('{n}', str(n)).replace('{m}', str(n + 1))}\n" for n in range(8)))
    arguments = [
        "fit",
        f"--config=configs/{config}.yaml",
        "--data.prompts=FileExamples",
        f"--data.prompts.train={file}",
    ]
    arguments += options or ["--data.batch_size=4"]
    arguments += (
        ["--data.rewards=[{function: rl_lightning.rewards.functions.answer_correct}]"] if config == "grpo" else []
    )
    arguments += [f"--model.policy={tiny_policy}", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"]
    assert run([*arguments, "--data.sampling.max_new_tokens=4"]).trainer.global_step == (1 if config == "grpo" else 2)


def spread_out(devices: int, policy: str, directory: Path, *extra: str) -> list[str]:
    """Return the arguments of a run on some processes."""
    configs = ["fit", "--config=configs/grpo.yaml"]
    configs += ["--config=configs/trainer/ddp.yaml"] if devices > 1 else []
    arguments = [*small(ROOT / "configs" / "grpo.yaml", policy, directory), *LEARNABLE, f"--trainer.devices={devices}"]
    return [*configs, *arguments, *extra]


def fit_on_this_rank(arguments: list[str]) -> None:
    sys.argv = ["rl_lightning"]
    run(arguments)


@pytest.mark.slow  # test_metric_ranks compares every metric of two ranks
def test_two_processes_log_what_one_does(tiny_policy, tmp_path):
    """As a command that starts the second process itself. The answers are the same too: their randomness is named by their number
    in the run, not by the rank."""
    curves = []
    for devices in (1, 2):
        directory = tmp_path / str(devices)
        extra = ["--trainer.check_val_every_n_epoch=2", "--data.evaluation.max_prompts=3"]
        arguments = spread_out(devices, tiny_policy, directory, *extra)
        if devices == 1:
            run(arguments)
        else:
            command = [sys.executable, "-m", "rl_lightning", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
        events = EventAccumulator(str(directory / "tensorboard")).Reload()
        names = (
            "rollout/reward_mean",
            "rollout/length_mean",
            "train/grad_norm",
            "kl/k3",
            "val/reward_mean",
            "val/pass@1",
        )
        curves.append({name: [event.value for event in events.Scalars(name)] for name in names})
    for name, values in curves[0].items():
        assert curves[1][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


@pytest.mark.slow  # `test_strategies` does, from Python
def test_two_ranks_go_on_in_the_middle_of_a_rollout(ranks, tiny_policy, tmp_path):
    """Each rank finds its own share of the rollout in the checkpoint; four updates a rollout, stopped after six."""
    extra = ["--trainer.limit_val_batches=0", "--data.epochs_per_rollout=2", "--data.minibatch_size=4"]
    extra += [
        "--trainer.callbacks.init_args.every_n_epochs=null",
        "--trainer.callbacks.init_args.every_n_train_steps=3",
    ]
    extra += ["--model.optimizer.schedule=constant"]
    for place, rest in (("whole", []), ("part", ["--trainer.max_steps=6"]), ("part", ["--ckpt_path=last"])):
        ranks(fit_on_this_rank, spread_out(2, tiny_policy, tmp_path / place, *extra, *rest))
    whole, part = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "hf") for name in ("whole", "part"))
    start = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert not torch.equal(whole.lm_head.weight, start.lm_head.weight)
    for name, value in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], value), name


LEARNABLE = [
    "--data.rewards=[{function: tests.rewards_for_runs.length}]",
    "--model.optimizer={lr: 0.01, schedule: cosine, warmup_steps: 2}",
]


# `test_resume` stops every algorithm, at every place; `test_sigterm` and `test_progress` go on from the command line.
@pytest.mark.slow
@pytest.mark.parametrize("config", ALGORITHMS, ids=lambda path: path.stem)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(config, tiny_policy, tmp_path):
    """With what the YAMLs ship: validation, checkpoints by epoch, a schedule; stopped, not finished, after two epochs."""
    changes = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1", *LEARNABLE]
    changes += ["--trainer.callbacks.init_args.every_n_epochs=1"]  # of the last callback listed, ModelCheckpoint
    arguments = ["fit", f"--config={config}", *small(config, tiny_policy, tmp_path), *changes]
    if config.stem == "distillation":  # a policy that teaches itself learns nothing
        arguments.append(f"--model.teacher={halved(tiny_policy, tmp_path / 'teacher')}")
    whole = run([*arguments, f"--trainer.default_root_dir={tmp_path / 'whole'}"])
    stop = ["--trainer.callbacks+=tests.support.StopAfter", "--trainer.callbacks.epochs=2"]
    stopped = run([*arguments, *stop])
    assert 0 < stopped.trainer.global_step < whole.trainer.global_step
    resumed = run([*arguments, "--ckpt_path=last"])
    assert resumed.trainer.global_step == whole.trainer.global_step
    start = AutoModelForCausalLM.from_pretrained(tiny_policy)
    trained = whole.model.hf_parts()[0].get_input_embeddings().weight
    assert not torch.equal(trained, start.get_input_embeddings().weight)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    "precision", cases(["32-true", "bf16-mixed", "bf16-true"], soon=lambda precision: precision == "bf16-mixed")
)
def test_every_precision_takes_a_step_with_clipping(precision, tiny_policy, tmp_path):
    config = ROOT / "configs" / "grpo.yaml"
    arguments = [f"--config={config}", *small(config, tiny_policy, tmp_path), *LEARNABLE]
    arguments += [f"--trainer.precision={precision}", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]
    assert run(["fit", *arguments]).trainer.global_step == 1


MISTAKES = {
    "a misspelt option": (["--model.klcoef=0.1"], "did you mean 'kl_coef'"),
    "a misspelt trainer option": (["--trainer.max_stepz=3"], "did you mean 'max_steps'"),
    "a misspelt nested option": (["--data.sampling.temprature=1"], "did you mean 'temperature'"),
    "a wrong type": (["--model.optimizer.lr=fast"], "model.optimizer.lr: expected float. Got value: fast"),
    "a missing file": (["--config=configs/nothing.yaml"], "configs/nothing.yaml"),
    "no such policy": (["--model.policy=./nowhere"], "no directory nowhere"),
    "nothing to go on from": (["--ckpt_path=last"], "there is no last*.ckpt in"),
    "no such checkpoint": (["--ckpt_path=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
    "no best checkpoint": (["--ckpt_path=best"], "--ckpt_path best is for the process that has trained"),
    "no checkpoint of a scheduler": (["--ckpt_path=hpc"], "there is no hpc_ckpt_*.ckpt in"),
    "no such strategy": (["--trainer.strategy=fsdp3"], "invalid strategy name: `strategy='fsdp3'`"),
    "no such device": (["--trainer.devices=x"], "trainer: `devices` selected with"),
    "validation at no epoch": (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch must be at least 1"),
    "a value that is not there": (["--trainer.default_root_dir=${trainer.nothing}"], "nothing"),
    "another kind of module": (["--model=SFT"], "SFT learns from demonstrations"),
    "no minibatch": (["--data.minibatch_size=0"], "minibatch_size=0 must divide"),
    "no evaluation batch": (["--data.evaluation.prompts_per_batch=0"], "prompts_per_batch must be at least 1"),
    "a negative seed": (["--data.seed=-1"], "seed must be at least 0"),
    "betas out of range": (["--model.optimizer.betas=[0.9, 1.5]"], "betas must lie in [0, 1)"),
    "a schedule without an end": (
        ["--model.optimizer.schedule=cosine", "--trainer.max_epochs=-1"], "schedule: cosine needs an end"),
    "part of a rollout": (["--data.microbatch_size=2", "--trainer.limit_train_batches=3"], "would cut an epoch of 4"),
    "another vocabulary": (["--model.reference=embedded"], "log-probabilities cannot be compared"),
    "a penalty that never acts": (
        ["--trainer.callbacks+=OverlongShaping", "--trainer.callbacks.cache_length=0"], "would never act"),
    "a group of one": (["--data.group_size=1"], "group_size=1 must be at least 2"),
    "sizes that do not divide": (["--data.minibatch_size=5"], "minibatch_size=5 must divide"),
    "microbatches that do not divide": (["--data.microbatch_size=3"], "microbatch_size=3 must divide"),
    "accumulation that contradicts": (["--trainer.accumulate_grad_batches=3"], "contradicts"),
    "top-k in training": (["--data.sampling.top_k=5"], "top_k and top_p must be off"),
    "a prompt too long": (["--data.prompt_options.max_length=2"], "tokens, more than"),
    "an unknown reward": (["--data.rewards=[{function: nowhere.reward}]"], "nowhere"),
    "a negative KL": (["--model.kl_coef=-1"], "kl_coef must be at least 0"),
    "a clip out of range": (["--model.clip_low=2"], "clip_low must lie in [0, 1]"),
    "a cache longer than the cap": (
        ["--trainer.callbacks+=OverlongShaping", "--trainer.callbacks.cache_length=99"], "must lie between 0 and"),
}  # fmt: skip


#: One that each part of a run finds: the parser, checkpoints, the Trainer, the module, sizes, the prompts, rewards, callbacks.
COMMON_MISTAKES = {
    "a misspelt option", "a misspelt trainer option", "a misspelt nested option", "a wrong type", "a missing file",
    "no such policy", "nothing to go on from", "no such device", "a value that is not there", "another kind of module",
    "another vocabulary", "sizes that do not divide", "a prompt too long", "an unknown reward", "a negative KL",
    "a penalty that never acts",
}  # fmt: skip


# What checks the options of a class is tested beside it, from Python.
@pytest.mark.parametrize("mistake", cases(MISTAKES, soon=lambda mistake: mistake in COMMON_MISTAKES))
def test_a_mistake_is_one_line_and_status_two(mistake, tiny_policy, tmp_path, capsys):
    config = ROOT / "configs" / "grpo.yaml"
    wrong, said = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={config}", *small(config, tiny_policy, tmp_path), *wrong])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("rl_lightning: error:") == 1 and "Traceback" not in printed
    assert said in printed


def test_a_callback_without_rollouts_to_act_on_is_refused(tiny_policy, tmp_path, capsys):
    config = ROOT / "configs" / "sft.yaml"
    with pytest.raises(SystemExit) as stopped:
        main(
            ["fit", f"--config={config}", *small(config, tiny_policy, tmp_path), "--trainer.callbacks+=GroupNormalize"]
        )
    assert stopped.value.code == 2
    assert "GroupNormalize acts on rollouts" in capsys.readouterr().err


def test_a_missing_callback_is_named_with_the_line_to_add(tiny_policy, tmp_path, capsys):
    settings = yaml.safe_load((ROOT / "configs" / "grpo.yaml").read_text())
    settings["trainer"]["callbacks"] = []
    config = tmp_path / "grpo.yaml"
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={config}", *small(config, tiny_policy, tmp_path)])
    assert stopped.value.code == 2
    assert "class_path: rl_lightning.callbacks.GroupNormalize" in capsys.readouterr().err
