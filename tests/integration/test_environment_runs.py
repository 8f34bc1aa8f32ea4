"""An environment as an overlay on shipped configurations, by the command line's own parser."""

import pytest

from rl_lightning.cli import run

SMALL = {
    "online": [
        "--data.prompts_per_rollout=2",
        "--data.group_size=2",
        "--data.minibatch_size=4",
        "--trainer.max_epochs=1",
    ],
    "stored": ["--data.max_prompts=6", "--data.group_size=4", "--data.batch_size=2", "--trainer.max_steps=1"],
}
RUNS = {
    "ppo": "online",
    "dapo": "online",
    "gspo": "online",
    "reinforce_plus_plus": "online",
    "dpo": "stored",
    "rft": "stored",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_overlay_makes_episodes_of_any_configuration(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overlay = (
        "data: {init_args: {prompts: null, rewards: null, environment: {function: examples.environments.guess.guess, stop: [';']}, "
        "sampling: {max_new_tokens: 8, max_turns: 3, max_turn_tokens: 2}}}"
    )
    own = ["--trainer.callbacks=[{class_path: rl_lightning.callbacks.RejectionSampling, init_args: {threshold: -1.0}}]"]
    trainer = run(
        ["fit", f"--config={name}", f"--config={overlay}", *SMALL[RUNS[name]], *(own if name == "rft" else []), f"--trainer.default_root_dir={tmp_path}",
         "--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    ).trainer  # fmt: skip
    assert trainer.global_step > 0
    turns = trainer.callback_metrics.get("rollout/turns_mean")
    assert turns is None or 1 <= float(turns) <= 3
