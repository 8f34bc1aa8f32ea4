"""What each logger gets: numbers, tables, histograms, the configuration; and what stays when a run goes on."""

import csv
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lightning.callbacks import loggers as sinks
from rl_lightning.callbacks.logged_before import RUNS_FILE, KeptRows
from rl_lightning.cli import run
from tests.checks import cases, holds_only_for

SMALL = [
    "--config=grpo", "--data.prompts.init_args.train_size=24", "--data.prompts.init_args.val_size=4",
    "--data.sampling.max_new_tokens=6", "--data.evaluation.samples_per_prompt=2", "--data.prompts_per_rollout=4",
    "--data.group_size=2", "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false",
    "--data.rewards=[{function: tests.rewards_for_runs.length}]", "--model.optimizer.lr=0.01",
]  # fmt: skip


def overlay(directory: Path) -> Path:
    """Write a YAML with four loggers that all write below a directory."""
    kinds = {
        "CSVLogger": {"save_dir": str(directory), "name": "csv", "version": ""},
        "WandbLogger": {"save_dir": str(directory), "offline": True, "project": "tests"},
        "MLFlowLogger": {"tracking_uri": f"file:{directory}/mlflow"},
        "TensorBoardLogger": {"save_dir": str(directory), "name": "tensorboard", "version": ""},
    }
    listed = [{"class_path": f"lightning.pytorch.loggers.{name}", "init_args": kinds[name]} for name in kinds]
    path = directory / "loggers.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"logger": listed}}))
    return path


def fit(directory, policy, *more):
    where = [f"--config={overlay(directory)}", f"--trainer.default_root_dir={directory}", f"--model.policy={policy}"]
    return run(["fit", *SMALL, *where, *more]).trainer


@pytest.fixture(scope="module")
def logged(tmp_path_factory, tiny_policy):
    """A run with four loggers, stopped after one rollout and gone on with to two."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    directory = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rl-lightning"])
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("WANDB_SILENT", "true")
        fit(directory, tiny_policy, "--trainer.max_epochs=1")
        import wandb

        wandb.finish()
        fit(directory, tiny_policy, "--trainer.max_epochs=2", "--ckpt_path=last")
        wandb.finish()
    return directory


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_row_once_and_files_beside(logged):
    rows = rows_of(logged / "csv" / "metrics.csv")
    rewards = [(int(row["step"]), float(row["rollout/reward_mean"])) for row in rows if row["rollout/reward_mean"]]
    points = EventAccumulator(str(logged / "tensorboard")).Reload().Scalars("rollout/reward_mean")
    assert [step for step, _ in rewards] == [0, 1]
    assert dict(rewards) == pytest.approx({one.step: one.value for one in points})
    assert sum(bool(row["val/pass@1"]) for row in rows) == 1 + 2  # one before training
    table = rows_of(logged / "csv" / "rollout_samples" / "step-000000.csv")
    assert {"prompt", "response", "reward", "advantage"} <= table[0].keys()
    bins = rows_of(logged / "csv" / "rollout_reward" / "step-000000.csv")
    assert sum(int(one["count"]) for one in bins) == 4 * 2
    settings = yaml.unsafe_load((logged / "csv" / "hparams.yaml").read_text())
    assert settings["model"]["init_args"]["optimizer"]["lr"] == 0.01


def test_weights_and_biases_gets_tables_histograms_and_the_configuration(logged):
    first, second = sorted((logged / "wandb").glob("offline-run-*"))
    assert first.name.rsplit("-", 1)[1] == second.name.rsplit("-", 1)[1]  # one run, which `wandb sync` puts together
    contents = b"".join(path.read_bytes() for path in first.glob("*.wandb"))
    for name in (b"rollout/reward_mean", b"rollout/reward", b"policy/ratio", b"histogram", b"prompts_per_rollout"):
        assert name in contents, name
    (table,) = (first / "files" / "media" / "table" / "rollout").glob("samples_*.json")
    contents = json.loads(table.read_text())
    assert "response" in contents["columns"]
    assert len(contents["data"]) == 4 * 2


def test_mlflow_gets_tables_histograms_and_the_configuration(logged):
    from mlflow.tracking import MlflowClient

    name = json.loads((logged / RUNS_FILE).read_text())["MLFlowLogger 2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(f"file:{logged}/mlflow")
    kept = client.get_run(name).data
    assert kept.params["model.optimizer.lr"] == "0.01"
    assert kept.params["trainer.max_epochs"] == "1"
    assert kept.tags["changed.trainer.max_epochs"] == "2"
    assert len(client.get_metric_history(name, "rollout/reward_mean")) == 2
    assert [one.path for one in client.list_artifacts(name, "rollout/samples")] == ["rollout/samples/step-000000.csv"]
    assert client.list_artifacts(name, "policy/ratio")


@pytest.mark.parametrize("kind", cases(["file", "sqlite"], soon=lambda kind: kind == "file"))
def test_two_runs_of_one_process_are_two_runs_of_a_database(kind, tmp_path, tiny_policy, monkeypatch):
    """MLflow's own default is sqlite, which the shipped overlay names; to set its tables up takes five seconds."""
    for needed in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(needed)
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    monkeypatch.chdir(tmp_path)  # beside a database, MLflow keeps tables and histograms in ./mlruns
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"{kind}:{'///' * (kind == 'sqlite')}{tmp_path}/ä b{'.db' * (kind == 'sqlite')}"
    rewards = []
    for seed in (1, 2):
        cli = run(
            ["fit", *SMALL, "--config=logger/mlflow", f"--trainer.logger.tracking_uri={address}", "--trainer.max_epochs=1",
             f"--trainer.default_root_dir={tmp_path}/{seed}", f"--model.policy={tiny_policy}", f"--seed_everything={seed}"]
        )  # fmt: skip
        rewards.append(float(cli.trainer.callback_metrics["rollout/reward_mean"]))
    client = MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name("rl_lightning").experiment_id])
    found = {kept.data.params["seed_everything"]: kept for kept in runs}
    assert set(found) == {"1", "2"} and all(kept.info.status == "FINISHED" for kept in runs)
    assert [found[seed].data.metrics["rollout/reward_mean"] for seed in ("1", "2")] == pytest.approx(rewards)
    for kept in runs:
        assert [one.step for one in client.get_metric_history(kept.info.run_id, "rollout/reward_mean")] == [0]


def test_tensorboard_gets_settings_a_layout_and_no_point_for_them(logged):
    events = EventAccumulator(str(logged / "tensorboard")).Reload()
    tags = events.Tags()
    assert "rollout/samples/text_summary" in tags["tensors"]
    assert "custom_scalars__config__" in tags["tensors"]
    assert {"rollout/reward", "policy/ratio"} <= set(tags["histograms"])
    assert [one.step for one in events.Scalars("val/pass@1")] == [0, 0, 1]
    assert any(name.startswith("_hparams_/") for name in events.summary_metadata)


def test_an_evaluation_deletes_no_rows_and_a_new_run_sets_them_aside(logged, tmp_path, tiny_policy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    arguments = [
        *SMALL, "--config=logger/csv", f"--trainer.default_root_dir={tmp_path}", f"--model.policy={tiny_policy}",
        "--trainer.max_epochs=1", "--data.prompts.init_args.test_size=4", "--trainer.limit_val_batches=0",
    ]  # fmt: skip
    run(["fit", *arguments])
    file = tmp_path / "csv" / "metrics.csv"
    before = file.read_text()
    run(["test", *arguments])
    rows = rows_of(file)
    assert [bool(row["rollout/reward_mean"]) for row in rows].count(True) == 1
    assert rows[-1]["test/pass@1"]
    run(["fit", *arguments])
    assert len(rows_of(file)) == len(before.splitlines()) - 1
    assert rows_of(tmp_path / "csv" / "metrics-earlier.csv") == rows


def test_rows_that_a_kill_cut_off_and_rows_of_later_steps_go(tmp_path):
    def left(cut):
        file = tmp_path / "metrics.csv"
        file.write_text(f"a,step\r\n1.5,0\r\n2.5,1\r\n3.5,2\r\n{cut}")
        rows = KeptRows(str(tmp_path))
        rows.forget_after(1)
        rows.log_metrics({"a": 9.0, "b": 7.0}, 2)
        rows.save()
        return [(row["a"], row["b"], row["step"]) for row in rows_of(file)]

    kept = [("1.5", "", "0"), ("2.5", "", "1"), ("9.0", "7.0", "2")]
    assert left("4.5,1") == left("") == kept  # step 12, of which a kill has left the first digit
    assert left("4.5,1\r\n") != kept


@holds_only_for(
    sinks._binned, shifted=lambda values: sinks._binned(values + 1), doubled=lambda v: sinks._binned(v.repeat(2))
)
def test_bins_are_those_of_the_values(binned):
    counts, edges = binned(torch.tensor([0.0, 1.0, 1.0, float("nan"), 2.0]))
    assert len(edges) == len(counts) + 1
    assert (edges[0], edges[-1], sum(counts)) == (0.0, 2.0, 4)
    assert counts[len(counts) // 2] == 2


def test_bins_of_equal_values_and_of_none():
    assert sum(sinks._binned(torch.tensor([3.0, 3.0]))[0]) == 2
    assert sum(sinks._binned(torch.tensor([float("inf")]))[0]) == 0


class Numbers(Logger):
    """A logger of which nothing is known."""

    name = version = None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *arguments):
        self.params = params


def test_a_logger_of_another_kind_gets_numbers_and_one_warning(caplog):
    sinks._TOLD.clear()
    logger = Numbers()
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            sinks.write_histogram(logger, "a", torch.ones(3), step)
            sinks.write_table(logger, "b", ["c"], [[1]], "| c |", step)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["Numbers gets numbers only"]
    sinks.write_settings(logger, {"model": {"lr": 1}}, [])
    assert logger.params == {"model": {"lr": 1}}


def test_settings_are_named_without_the_layers_of_a_yaml():
    settings = {"model": {"class_path": "a.GRPO", "init_args": {"optimizer": {"lr": 0.1}, "x": None}}, "seed": [1, 2]}
    assert dict(sinks._flat(settings)) == {"model": "GRPO", "model.optimizer.lr": 0.1, "seed": "[1, 2]"}


@pytest.mark.parametrize("given", ["WandbLogger", "CSVLogger", "[{class_path: CSVLogger, init_args: {save_dir: x}}]"])
def test_another_logger_does_not_inherit_the_options_of_tensorboards(given, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    more = ["--trainer.logger.save_dir=x"] if given == "CSVLogger" else []
    with pytest.raises(SystemExit):
        run(["fit", "--config=grpo", f"--trainer.logger={given}", *more, "--print_config"])
    logger = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]
    logger = logger[0] if isinstance(logger, list) else logger
    assert logger["init_args"]["name"] != "tensorboard"


@pytest.mark.parametrize("kind", ["rl_lightning.TensorBoard", "lightning.pytorch.loggers.TensorBoardLogger"])
def test_a_changed_option_of_the_same_logger_leaves_the_others(kind, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    text = f"{{trainer: {{logger: {{class_path: {kind}, init_args: {{sub_dir: a}}}}}}}}"
    with pytest.raises(SystemExit):
        run(["fit", "--config=grpo", f"--config={text}", "--print_config"])
    logger = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]["init_args"]
    assert (logger["save_dir"], logger["sub_dir"]) == ("runs/grpo", "a")


def test_a_csv_logger_writes_beside_its_numbers(tmp_path):
    logger = CSVLogger(str(tmp_path), name="ä b", version="")
    sinks.write_table(logger, "val/samples", ["prompt", "reward"], [['größer, als\n"es"', 1.0], [None, 0.5]], "", 7)
    assert rows_of(tmp_path / "ä b" / "val_samples" / "step-000007.csv") == [
        {"prompt": 'größer, als\n"es"', "reward": "1.0"}, {"prompt": "", "reward": "0.5"},
    ]  # fmt: skip
