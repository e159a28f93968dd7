"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI over the module, the data module and the callbacks."""

from __future__ import annotations

import logging
import os
from argparse import HelpFormatter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from typst_lit.callbacks.adapter_export import AdapterExport
from typst_lit.callbacks.contract_learning import ContractLearning
from typst_lit.callbacks.early_stopping import EarlyStopping
from typst_lit.callbacks.evaluation import Evaluation
from typst_lit.callbacks.graceful_shutdown import GracefulShutdown
from typst_lit.callbacks.learning_curve import LearningCurve
from typst_lit.callbacks.memory_profiler import MemoryProfiler
from typst_lit.callbacks.prediction_writer import PredictionWriter
from typst_lit.callbacks.progress import progress_bar
from typst_lit.callbacks.resumable_checkpoint import ResumableCheckpoint
from typst_lit.callbacks.throughput import Throughput
from typst_lit.cli.configs import resolve_configs
from typst_lit.cli.messages import Flags, use_flags
from typst_lit.cli.parser import explain_parse_error
from typst_lit.cli.run_directory import (
    CONFIG_FILE,
    LOCK_HINT,
    PLAN_FILE,
    check_run_dir,
    check_run_dir_is_free,
    claim_if_free,
    claim_run_dir,
    resolve_checkpoint,
)
from typst_lit.cli.settings_help import settings_help
from typst_lit.cli.trainer import (
    TRAINER_DEFAULTS,
    check_precision,
    check_seed,
    check_trainer_settings,
    default_precision,
)
from typst_lit.cli.unknown_flags import refuse_unknown_flags
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UsageError, UserError
from typst_lit.inference.settings import GenerationSettings
from typst_lit.locking import check_unlocked
from typst_lit.manifest import write_output
from typst_lit.model.module import TypstModule
from typst_lit.model.step_guard import StepGuard
from typst_lit.planning.from_config import format_settings, plan_run, write_overlay
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
CALLBACK_GROUPS = {
    "contract": ContractLearning,
    "adapter_export": AdapterExport,
    "checkpoint": ResumableCheckpoint,
    "early_stopping": EarlyStopping,
    "memory_profiler": MemoryProfiler,
    "eval": Evaluation,
    "predict": PredictionWriter,
}
GROUPS = ("model", "data", "trainer", "generation", "watchdog", "typesetting", *CALLBACK_GROUPS)
# Parameters of the trainer's methods that aren't settings. Predictions are written, so they aren't collected as well.
NO_SETTINGS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "return_predictions"}


def fit(args: Sequence[str]) -> None:
    """Train an adapter on pairs of record and Typst source."""
    run_command("fit", args)


def validate(args: Sequence[str]) -> None:
    """Measure the loss on held-out pairs."""
    run_command("validate", args)


def test(args: Sequence[str]) -> None:
    """Measure the loss, and metrics of the generated sources, on test pairs."""
    run_command("test", args)


def predict(args: Sequence[str]) -> None:
    """Generate documents for records, with the settings of a run."""
    run_command("predict", args)


def run_command(command: str, args: Sequence[str]) -> None:
    """Runs a command of LightningCLI with the arguments of its command line."""
    torch.set_float32_matmul_precision("high")
    TypstCLI(command, args).run()


class ConfigWriter(SaveConfigCallback):
    """Writes the settings next to the curves of a fit; the other commands write none.

    They would replace those of the fit.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.state.fn != "fit":
            return
        log_dir = trainer.log_dir  # on all ranks, because it is broadcast
        if trainer.is_global_zero and log_dir is not None:
            settings = self.parser.dump(self.config, skip_unset=False)
            write_output(Path(log_dir) / CONFIG_FILE, settings.encode())


class SettingsParser(LightningArgumentParser):
    """The parser of a command of LightningCLI: its errors are one message, and its help is short."""

    show_all = False  # whether --help lists all settings

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        return super().format_help(formatter) if self.show_all else settings_help(self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(explain_parse_error(message, self))


class TypstCLI(LightningCLI):
    """LightningCLI with the callbacks of this project as groups of settings of their own, which no config can drop.

    Creating one parses the arguments and creates module, data module and trainer; `run` runs the command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: the arguments of its command line.

    Raises:
        UserError: when the settings are invalid, or the run directory has another run.

    Example:
        >>> from typst_lit import TypstCLI
        >>> cli = TypstCLI("fit", ["--model.base_model", "typst-nano", "--run_dir", "runs/example"])
        >>> cli.model.base_model, cli.trainer.max_epochs
        ('typst-nano', 3)
    """

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self.command = command
        args = list(args)
        show_all = "--help-all" in args or any(pair == ("--help", "all") for pair in pairwise(args))
        super().__init__(
            model_class=TypstModule,
            datamodule_class=TypstDataModule,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=SettingsParser,
            save_config_callback=ConfigWriter,
            parser_kwargs={"prog": f"typst-lit {command}", "description": "Every setting of the command."},
            load_from_checkpoint_support=False,
            args=["--help-all"] if show_all else args,
            run=False,  # no subcommands: to build the parsers of all would only take time
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default="runs/default", help="Directory for all files of the run.")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        for group, callback in CALLBACK_GROUPS.items():
            parser.add_lightning_class_args(callback, group)
        parser.add_class_arguments(StepGuard, "watchdog")
        parser.link_arguments("watchdog", "model.step_guard", apply_on="instantiate")
        parser.add_class_arguments(GenerationSettings, "generation")
        parser.add_class_arguments(Typesetter, "typesetting")
        for group in ("adapter_export", "eval", "predict"):
            parser.link_arguments("generation", f"{group}.generation", apply_on="instantiate")
        for group in ("contract", "eval", "predict"):
            parser.link_arguments("typesetting", f"{group}.typesetter", apply_on="instantiate")
        self.method_arguments = parser.add_method_arguments(Trainer, self.command, as_group=False, skip={*NO_SETTINGS})
        if self.command == "fit":
            parser.add_argument(
                "--plan",
                type=Literal["auto"] | None,
                default=None,
                help="auto: choose batch size, accumulation and activation checkpointing for this device as "
                "`typst-lit plan` does, with the same number of samples per step; split batches that still don't fit.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, SettingsParser)
        if args == ["--help-all"]:
            parser.show_all, args = True, ["--help"]
        use_flags(Flags.from_parser(parser))
        args = resolve_configs(args)
        refuse_unknown_flags(args, parser)
        self.config = parser.parse_args(args)
        for group in GROUPS:
            settings = self.config.get(group)
            # of a trainer that is null, the setting that run_dir is linked to is left
            if settings is None or (group == "trainer" and "max_epochs" not in settings):
                raise UsageError("must not be null.", setting=group, hint="Give its settings, or leave it out.")
        check_trainer_settings(vars(self.config.trainer), self.command)
        check_seed(self.config.get("seed_everything"))

    def before_instantiate_classes(self) -> None:
        config = self.config
        run_dir = Path(config.run_dir)
        if self.command == "fit" and _is_first_rank():
            check_unlocked(run_dir, LOCK_HINT)
        if self.command == "fit" and not config.ckpt_path and int(os.environ.get("SLURM_RESTART_COUNT") or 0):
            config.ckpt_path = "last"  # the job was queued again: the same command resumes
        if config.ckpt_path:
            config.ckpt_path = str(resolve_checkpoint(config.ckpt_path, run_dir))
        if self.command == "fit":
            if not self._resumes:
                check_run_dir_is_free(run_dir)
            if _is_first_rank():
                paths = [config.data.get(name) for name in ("path", "val_path", "test_path")]
                check_run_dir(run_dir, [path for path in paths if path], self._resumes)

    @property
    def _resumes(self) -> bool:
        """Whether the run of the run directory is resumed."""
        path, run_dir = self.config.ckpt_path, Path(self.config.run_dir)
        return bool(path) and Path(path).resolve().is_relative_to(run_dir.resolve())

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.model = self.config_init.model
        self.datamodule = self.config_init.data
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init.trainer
        if settings.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(settings.default_root_dir, name="tensorboard", default_hp_metric=False)
        if self.command != "fit":
            kwargs["logger"] = False
        if settings.precision is None:
            kwargs |= default_precision(settings.accelerator)
        else:
            check_precision(settings.precision, self.model.use_4bit)
        callbacks = [] if settings.enable_progress_bar is False else [progress_bar()]
        self.trainer_defaults["callbacks"] = [
            *callbacks, Throughput(), LearningCurve(self._flat_settings()), GracefulShutdown()
        ]  # fmt: skip
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"Lightning refuses these settings: {error}") from error

    def run(self) -> None:
        """Runs the command.

        Raises:
            UserError: when another process trains in the run directory.
        """
        if not _is_first_rank():  # the others write nothing
            self._run()
        elif self.command != "fit":
            claim_if_free(Path(self.config.run_dir))
            self._run()
        else:
            with claim_run_dir(Path(self.config.run_dir), self._resumes):
                self._run()

    def _run(self) -> None:
        if self.command == "fit" and self.config.plan is not None:
            self._apply_plan()
        arguments = {name: self.config_init[name] for name in self.method_arguments}
        if self.command == "predict":
            self.model.generate_documents = self.config_init.predict.generate
            arguments["return_predictions"] = False
        getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, **arguments)

    def _apply_plan(self) -> None:
        """Applies a plan: that of the run directory where a run is resumed, else a new one."""
        path = Path(self.config.run_dir) / PLAN_FILE
        if self.config.ckpt_path and path.is_file():
            overlay = yaml.safe_load(path.read_text("utf-8"))
            log.info("The plan of %s: %s", path, format_settings(overlay))
        else:
            overlay = plan_run(self.model, self.datamodule, self.trainer)
            if self.trainer.is_global_zero:
                write_overlay(overlay, path)
        self.model.step_guard.out_of_memory = overlay["watchdog"]["out_of_memory"]
        self.model.gradient_checkpointing = overlay["model"]["gradient_checkpointing"]
        self.datamodule.batch_size = overlay["data"]["batch_size"]
        self.trainer.accumulate_grad_batches = overlay["trainer"]["accumulate_grad_batches"]
        for group, values in overlay.items():  # the saved configuration has the settings that were used
            for name, value in values.items():
                self.config[f"{group}.{name}"] = value

    def _flat_settings(self) -> dict[str, Any]:
        """Returns the run's settings by dotted name, for TensorBoard's table of runs."""
        flat = vars(self.config.as_flat())
        trainer = ("trainer.max_epochs", "trainer.accumulate_grad_batches", "trainer.precision")
        return {
            name: value
            for name, value in flat.items()
            if value is not None and (name.startswith(("model.", "data.")) or name in trainer)
        }


def _is_first_rank() -> bool:
    """Returns whether this process is the first one of its run, as the launcher's environment says."""
    return not getattr(rank_zero_only, "rank", 0)
