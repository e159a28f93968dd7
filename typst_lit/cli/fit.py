"""The wiring of fit, validate, test and predict: LightningCLI over the module, the data module and the callbacks."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

from typst_lit.callbacks.adapter_export import AdapterExport
from typst_lit.callbacks.checkpoint_files import integrity_error, newest_intact
from typst_lit.callbacks.early_stopping import EarlyStopping
from typst_lit.callbacks.evaluation import Evaluation
from typst_lit.callbacks.graceful_shutdown import GracefulShutdown
from typst_lit.callbacks.learning_curve import LearningCurve
from typst_lit.callbacks.memory_profiler import MemoryProfiler
from typst_lit.callbacks.prediction_writer import PredictionWriter
from typst_lit.callbacks.progress import progress_bar
from typst_lit.callbacks.resumable_checkpoint import ResumableCheckpoint
from typst_lit.callbacks.throughput import Throughput
from typst_lit.cli import app, convert, doctor, export, generate, lengths, score, serve
from typst_lit.cli import compile as compile_command
from typst_lit.cli.messages import Flags, use_flags
from typst_lit.cli.parser import explain_parse_error
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UsageError, UserError
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.model.backbones import compute_dtype
from typst_lit.model.module import TypstModule
from typst_lit.model.step_guard import StepGuard
from typst_lit.planning.from_config import format_settings, plan_run, write_overlay
from typst_lit.plugins import load_plugins
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
PLAN = "plan.yaml"
TRAINER_DEFAULTS = {
    "max_epochs": 3,
    "accumulate_grad_batches": 4,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,  # a step takes seconds, a point in the curve nothing
    "num_sanity_val_steps": 1,
    "use_distributed_sampler": False,  # the batches are shared out by LengthGroupedSampler
    "enable_model_summary": False,  # the module itself says how much is trained
    "precision": None,  # chosen from the device
}


class CommandParser(LightningArgumentParser):
    """A parser whose errors are one message, not a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(explain_parse_error(message, self))


class TypstCLI(LightningCLI):
    """LightningCLI with the callbacks of this project as top-level groups, which no overlay can drop.

    Args:
        command: the one subcommand to build a parser for, as the others would only cost time; or None for all.
        args: its arguments.
    """

    def __init__(self, command: str | None, args: Sequence[str]) -> None:
        self.command = command or ""
        super().__init__(
            model_class=TypstModule,
            datamodule_class=TypstDataModule,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=CommandParser,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "typst-lit"},
            load_from_checkpoint_support=False,
            args=[command, *args] if command else list(args),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        commands = [self.command] if self.command else ["fit", "validate", "test", "predict"]
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {command: set(skipped) for command in commands}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        if not self.command:  # for shell completion: it should know the small commands as well
            for name, module in (
                ("lengths", lengths),
                ("compile", compile_command),
                ("convert", convert),
                ("export", export),
                ("doctor", doctor),
                ("score", score),
                ("generate", generate),
                ("serve", serve),
                ("app", app),
            ):
                parser._subcommands_action.add_subcommand(name, module.parser())  # type: ignore[union-attr]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default="runs/default", help="Where everything of the run is kept.")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        for callback, group in (
            (AdapterExport, "adapter_export"),
            (ResumableCheckpoint, "checkpoint"),
            (EarlyStopping, "early_stopping"),
            (MemoryProfiler, "memory_profiler"),
            (Evaluation, "eval"),
            (PredictionWriter, "predict"),
        ):
            parser.add_lightning_class_args(callback, group)
        parser.add_class_arguments(StepGuard, "watchdog")
        parser.link_arguments("watchdog", "model.step_guard", apply_on="instantiate")
        parser.add_class_arguments(GenerationSettings, "generation")
        parser.add_class_arguments(Typesetter, "typesetting")
        for group in ("eval", "predict"):
            parser.link_arguments("generation", f"{group}.generation", apply_on="instantiate")
            parser.link_arguments("typesetting", f"{group}.typesetter", apply_on="instantiate")
        if self.command == "fit":
            parser.add_argument(
                "--plan",
                type=Literal["auto"] | None,
                default=None,
                help="auto: batch size, accumulation and checkpointing as `typst-lit plan` recommends for this device, "
                "with as many samples a step as asked for; batches that don't fit all the same are run in parts.",
            )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        # As in LightningCLI, but the trainer method's arguments make no group of their own: the name of the group
        # "predict" belongs to the prediction writer.
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        skip: set[str | int] = set(self.subcommands()[subcommand])
        if subcommand == "predict":
            skip.add("return_predictions")  # they are on the disk; keeping all in memory too helps nobody
        added = parser.add_method_arguments(klass, subcommand, as_group=False, skip=skip)
        self._subcommand_method_arguments[subcommand] = added
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if self.command:
            use_flags(Flags.from_parser(parser._subcommands_action.choices[self.command]))  # type: ignore[union-attr]
        self.config = parser.parse_args(args)
        if self.command:
            check_nulls(parser._subcommands_action.choices[self.command], self.config[self.command])  # type: ignore[union-attr]

    def _parse_ckpt_path(self) -> None:
        """A checkpoint holds no settings that would override the command line, so there is nothing to parse."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.command]
        run = Path(config.run_dir)
        if self.command == "fit" and not config.ckpt_path and int(os.environ.get("SLURM_RESTART_COUNT") or 0):
            config.ckpt_path = "last"  # the job was queued again: the same command goes on
        if config.ckpt_path:
            config.ckpt_path = str(resolve_checkpoint(config.ckpt_path, run))
        if self.command == "fit" and not (
            config.ckpt_path and Path(config.ckpt_path).resolve().is_relative_to(run.resolve())
        ):
            check_run_dir_is_free(run)

    def before_fit(self) -> None:
        """Puts a plan into force, that of the run directory where a run is resumed."""
        config = self.config[self.command]
        if config.plan is None:
            return
        path = Path(config.run_dir) / PLAN
        if config.ckpt_path and path.is_file():
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
        for group, values in overlay.items():  # so that the saved configuration tells what was run
            for name, value in values.items():
                config[f"{group}.{name}"] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        if given.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(given.default_root_dir, name="tensorboard", default_hp_metric=False)
        if self.command != "fit":
            kwargs["logger"] = False
        if given.precision is None:
            kwargs |= default_precision(given.accelerator)
        elif str(given.precision).endswith("-true") and given.precision != "32-true" and self.model.use_4bit:
            raise UserError(
                f"trainer.precision {given.precision} would convert 4-bit weights: use bf16-mixed or 16-mixed, or "
                "leave it out."
            )
        if given.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"] = [progress_bar()]
        callbacks = self.trainer_defaults.setdefault("callbacks", [])
        callbacks += [Throughput(), LearningCurve(self._settings()), GracefulShutdown()]
        return super().instantiate_trainer(**kwargs)

    def _settings(self) -> dict[str, Any]:
        """Returns the run's settings, flat, for TensorBoard's table of runs."""
        config = self.config[self.command]
        groups = {"model": config.model, "data": config.data}
        flat = {
            f"{group}.{key}": value for group, values in groups.items() for key, value in vars(values.as_flat()).items()
        }
        trainer = {
            f"trainer.{key}": config.trainer[key] for key in ("max_epochs", "accumulate_grad_batches", "precision")
        }
        return {key: value for key, value in {**flat, **trainer}.items() if value is not None}

    def predict(self, model: TypstModule, **kwargs: Any) -> None:
        """Runs the trainer's predict without collecting what the writer has put on the disk."""
        writer = next(callback for callback in self.trainer.callbacks if isinstance(callback, PredictionWriter))  # type: ignore[attr-defined]
        model.generate_documents = writer.generate
        self.trainer.predict(model, return_predictions=False, **kwargs)


def check_nulls(parser: CommandParser, config: Namespace) -> None:
    """Ends with a message where a setting is null whose type does not know that: the parser takes it for left out.

    Raises:
        UserError: naming the setting.
    """
    types = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    for name, value in vars(config.as_flat()).items():
        if value is not None:
            continue
        wanted = types.get(name)
        group = any(dest.startswith(f"{name}.") for dest in types)
        if (wanted is None and group) or (wanted is not None and type(None) not in (wanted, *get_args(wanted))):
            raise UsageError(f"{name}: null is no value for it. Give another, or leave the line out.")


def resolve_checkpoint(ckpt_path: str, run: Path) -> Path:
    """Returns the checkpoint that ``--ckpt_path`` means: a file, or the newest whole one of a directory or, for
    ``last``, of the run directory. Damaged ones that are newer are named and passed over.

    Raises:
        UserError: when there is none, naming the runs beside it that have one; or the file named is damaged.
    """
    path = run if ckpt_path == "last" else Path(ckpt_path)
    if path.is_file():
        fault = integrity_error(path.resolve()) if path.resolve().with_suffix(".json").is_file() else None
        if fault:
            raise UserError(f"--ckpt_path {ckpt_path}: {fault}. --ckpt_path {path.parent} takes the newest good one.")
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found, faults = newest_intact(folder)
    for fault in faults:
        log.warning("%s: it is passed over.", fault)
    if found:
        return found
    others = sorted({str(p.parent.parent) for p in run.parent.glob("*/checkpoints/*.json")})
    way_out = f"Runs that have one: {', '.join(others)} (name it with --run_dir)." if others else (
        "It was stopped before the first one was saved; start without --ckpt_path."
    )  # fmt: skip
    raise UserError(f"--ckpt_path {ckpt_path}: there is no whole checkpoint in {folder}. {way_out}")


def check_run_dir_is_free(run: Path) -> None:
    """Refuses a run directory that holds the work of another run.

    Raises:
        UserError: naming the ways to go on.
    """
    last, _ = newest_intact(run / "checkpoints")
    found = next((p.parent for p in sorted(run.glob("*/best/*.safetensors"))), None)
    if found is None and last is None:
        return
    ways = ["--run_dir ANOTHER   starts a new run beside it"]
    if last is not None:
        ways.insert(0, "--ckpt_path last   goes on where that run stopped, with its optimizer")
    if found is not None:
        flag = "--model.adapter_path" if found.parent.name == "adapter" else "--model.base_model"
        ways.insert(0, f"{flag} {found} --run_dir ANOTHER   trains those weights further, as a new run")
    what = f"the {found.parent.name} {found}" if found is not None else f"the unfinished run's checkpoint {last}"
    options = "\n".join(f"  {way}" for way in ways)
    raise UserError(f"{run} already holds {what}, which this run would overwrite. Choose:\n{options}")


def default_precision(accelerator: Any) -> dict[str, Any]:
    """Returns the trainer's precision for a device: mixed with bf16 or fp16 on a GPU, plain fp32 on the CPU."""
    name = accelerator if isinstance(accelerator, str) else "auto"
    if name == "auto":
        name = _AcceleratorConnector._choose_auto_accelerator()
    if name not in ("cuda", "gpu"):
        return {"precision": "32-true"}
    return {"precision": "bf16-mixed" if compute_dtype(torch.device("cuda", 0)) is torch.bfloat16 else "16-mixed"}


def run(command: str, args: Sequence[str]) -> None:
    """Runs fit, validate, test or predict with its command line arguments."""
    sys.path.insert(0, "")  # classes in local files can be named by their dotted path
    load_plugins()
    torch.set_float32_matmul_precision("high")
    TypstCLI(command, args)
