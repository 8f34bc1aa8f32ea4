"""The curves on the pages of algorithms: a short run of each shipped configuration, drawn into docs/pictures/curve_NAME.png.

Usage: python -m examples.site.curves [sft dpo ...] [--directory runs/curves] [--pictures docs/pictures]

Each run takes a few minutes of one core, and is not made again if it is there. Needs matplotlib: pip install -e '.[plots]'
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from examples.plot_runs import picture

ROOT = Path(__file__).parents[2]
#: 2,560 sampled answers, or three times as many demonstrations; validation at the start, and some times later.
_ROLLOUTS = ["--trainer.max_epochs=20", "--trainer.check_val_every_n_epoch=5"]
_ANSWERS = ["--data.max_prompts=320", "--trainer.val_check_interval=0.25"]
_DEMONSTRATIONS = [
    "--data.prompts.train_size=7680",
    "--trainer.val_check_interval=0.2",
    "--data.evaluation.max_prompts=64",
]
_HELD_OUT = ["--data.evaluation.max_prompts=32"]
_GROUPS, _ALONE = ["--data.prompts_per_rollout=16"], ["--data.prompts_per_rollout=128"]
_FOUR_UPDATES = ["--data.minibatch_size=32"]

_REWARD, _PASS, _LENGTH, _ENTROPY = "rollout/reward_mean", "val/pass@1", "rollout/length_mean", "policy/entropy"


def _pairs(name: str) -> list[str]:
    return [
        "train/loss",
        f"{name}/accuracy",
        f"{name}/margin",
        f"{name}/chosen_reward",
        f"{name}/rejected_reward",
        _PASS,
    ]


#: Name of a configuration → the curves that say most of it.
TAGS = {
    "sft": ["train/loss", "val/loss", _PASS],
    "rft": ["train/loss", _PASS, "val/length_mean"],
    "dpo": ["train/loss", "dpo/accuracy", "dpo/margin", "policy/chosen_logprob", _PASS, "val/length_mean"],
    "ppo": [_REWARD, "value/explained_variance", "value/loss", "kl/k1", _ENTROPY, _PASS],
    "grpo": [_REWARD, "rollout/all_right_fraction", "kl/k3", _ENTROPY, _LENGTH, _PASS],
    "dapo": [_REWARD, "rollout/kept_fraction", "rollout/answers", "policy/clip_fraction_high", _ENTROPY, _PASS],
    "rloo": [_REWARD, "rollout/all_right_fraction", "kl/k1", _ENTROPY, _LENGTH, _PASS],
    "dr_grpo": [_REWARD, "rollout/all_right_fraction", "train/grad_norm", _ENTROPY, _LENGTH, _PASS],
    "reinforce_plus_plus": [_REWARD, "rollout/reward_std", "kl/k1", _ENTROPY, _LENGTH, _PASS],
    "gspo": [_REWARD, "policy/clip_fraction_low", "policy/clip_fraction_high", _ENTROPY, _LENGTH, _PASS],
    "cispo": [_REWARD, "cispo/bounded_fraction", "policy/ess", _ENTROPY, _LENGTH, _PASS],
    "sapo": [_REWARD, "sapo/gate_mean", "policy/ess", _ENTROPY, _LENGTH, _PASS],
    "dppo": [_REWARD, "dppo/masked_fraction", "policy/ess", _ENTROPY, _LENGTH, _PASS],
    "distillation": ["reward/final_answer", "kl/k1", "kl/k3", _ENTROPY, _LENGTH, _PASS],
    "ipo": _pairs("ipo"),
    "simpo": _pairs("simpo"),
    "orpo": _pairs("orpo"),
    "kto": ["train/loss", "kto/accuracy", "kto/margin", "kto/z0", "kto/chosen_reward", _PASS],
    "robust_dpo": ["train/loss", "dpo/accuracy", "dpo/margin", "policy/chosen_logprob", _PASS, "val/length_mean"],
}
_OFFLINE = ("rft", "dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo")
_WITHOUT_GROUPS = ("ppo", "reinforce_plus_plus", "distillation")
_OFF_POLICY = ("dapo", "gspo", "cispo", "sapo", "dppo")


def arguments(name: str, directory: Path) -> list[str]:
    """Return what makes a run of a configuration short.

    Args:
        name: of the configuration.
        directory: of the runs.
    """
    if name == "sft":
        return _DEMONSTRATIONS
    if name in _OFFLINE:  # all learn from the same answers
        return [*_ANSWERS, *_HELD_OUT, f"--data.cache_dir={directory / 'cache'}"]
    size = [*_ROLLOUTS, *_HELD_OUT, *(_ALONE if name in _WITHOUT_GROUPS else _GROUPS)]
    teacher = [f"--model.teacher={directory / 'grpo' / 'hf'}"] if name == "distillation" else []
    return [*size, *(_FOUR_UPDATES if name in _OFF_POLICY else []), *teacher]


def train(name: str, directory: Path) -> None:
    """Train a configuration, unless that has been done.

    Raises:
        SystemExit: if it fails; says where its output is.
    """
    place = directory / name
    if (place / "hf").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    where = [f"--trainer.default_root_dir={place}", "--trainer.enable_progress_bar=false"]
    command = [sys.executable, "-m", "rl_lightning", "fit", f"--config={name}", *arguments(name, directory), *where]
    with (place / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; its output is in {place / 'log.txt'}")


def main() -> None:
    """Train what is not trained, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"all by default: {', '.join(TAGS)}")
    parser.add_argument("--directory", type=Path, default=Path("runs/curves"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in TAGS]
    if unknown:
        parser.error(f"{', '.join(unknown)} has no curve; there are {', '.join(TAGS)}")
    directory = options.directory.resolve()
    for name in options.names or TAGS:
        for needed in ("grpo", name) if name == "distillation" else (name,):
            train(needed, directory)
        picture([directory / name], TAGS[name], options.pictures / f"curve_{name}.png", f"{name}: one short run")


if __name__ == "__main__":
    main()
