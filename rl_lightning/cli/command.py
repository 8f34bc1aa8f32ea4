"""Lightning's command line with this library's defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import lightning
from jsonargparse import set_dumper, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rl_lightning.audit import Audits
from rl_lightning.callbacks import Dashboard
from rl_lightning.cli.config_file import NamedConfigFile, replacements_first
from rl_lightning.cli.saved_config import SaveFitConfig
from rl_lightning.defaults import TRAINER_DEFAULTS, complete, refusals_of_the_trainer
from rl_lightning.errors import UserError
from rl_lightning.options.parser import Parser
from rl_lightning.options.yaml_files import dump, settings_of
from rl_lightning.trainer import prepare

#: Exit status of an audit that alarms.
ALARM = 3


class CLI(LightningCLI):
    """LightningCLI with our defaults: model and data by class path, interpolation by omegaconf, overlays by repeated `--config`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's commands and `audit`: name → arguments that are no options."""
        return {**LightningCLI.subcommands(), "audit": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a command's parser, whose `--config` also takes the names of shipped configurations."""
        parser = self.parser_class(**{"dump_header": [f"lightning.pytorch=={lightning.__version__}"], **kwargs})
        parser.add_argument("-c", "--config", action=NamedConfigFile, help="a YAML file, or a shipped one by its name")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments; where they name another logger or algorithm, it does not inherit what was the configuration's."""
        self.config = parser.parse_args(
            replacements_first(sys.argv[1:] if args is None else cast("Sequence[str]", args))
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with what every run has: see `rl_lightning.defaults`.

        Raises:
            UserError: for settings that the Trainer refuses.
        """
        assert isinstance(self.parser, Parser)
        self.save_config_kwargs["written"] = self.parser.written
        settings = complete({**self.config_init[self.subcommand].trainer, **kwargs})
        with refusals_of_the_trainer():
            return super().instantiate_trainer(**settings)

    def before_fit(self) -> None:
        """Refuse a missing checkpoint, and a directory that another run is writing to, before anything is written."""
        self.check_checkpoint()
        settings = settings_of(self._parser("fit").dump(self.config.fit), "the configuration")
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for dashboard in [one for one in callbacks if isinstance(one, Dashboard)]:
            dashboard.settings = dashboard.settings or settings

    def check_checkpoint(self) -> None:
        """Check `--ckpt_path`: see `rl_lightning.trainer.prepare`."""
        path = self.config[self.subcommand].get("ckpt_path")
        if path == "best":
            raise UserError("--ckpt_path best is for the process that has trained: name the file, or last")
        prepare(self.trainer, path, goes_on=self.subcommand == "fit", option="--ckpt_path")

    before_validate = before_test = before_predict = before_audit = check_checkpoint

    def after_audit(self) -> None:
        """End with status 3 if what training would maximise alarms."""
        assert isinstance(self.trainer, Audits)
        if any(verdict.alarm and verdict.trained for verdict in self.trainer.verdicts):
            sys.exit(ALARM)

    def _parse_ckpt_path(self) -> None:
        """Do not read hyper-parameters from a checkpoint, as Lightning would: the command line and the YAML decide."""


def run(args: Sequence[str] | None = None) -> CLI:
    """Run a command from Python.

    Args:
        args: of the command line, such as `["fit", "--config=grpo"]`; those of this process if None.

    Returns:
        The CLI, with `trainer`, `model` and `datamodule`.

    Raises:
        UserError: for a mistake in the arguments or files.
    """
    given = sys.argv[1:] if args is None else list(args)
    # Interpolations name keys from the top of the file. They are resolved after all overlays and overrides are merged.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    set_dumper("yaml", dump)
    kind = _only(given[0]) if given and given[0] in CLI.subcommands() else CLI
    return kind(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "rl-lightning"},
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        trainer_class=Audits,
        trainer_defaults=TRAINER_DEFAULTS,
        parser_class=Parser,
        args=list(args) if args is not None else None,
    )


def _only(command: str) -> type[CLI]:
    """Return a CLI that has one command: to make the parsers of all takes half a second."""

    class Only(CLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: CLI.subcommands()[command]}

    return Only
