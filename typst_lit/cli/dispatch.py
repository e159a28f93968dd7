"""The command line. Nothing heavy is imported before a command is chosen."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence

from typst_lit.cli.messages import Flags, translate, use_flags
from typst_lit.errors import RunStopped, UsageError, UserError
from typst_lit.version import __version__


def _train(command: str) -> Callable[[Sequence[str]], None]:
    def run(args: Sequence[str]) -> None:
        from typst_lit.cli import fit

        fit.run(command, args)

    return run


def _small(module: str) -> Callable[[Sequence[str]], None]:
    def run(args: Sequence[str]) -> None:
        importlib.import_module(f"typst_lit.cli.{module}").run(args)

    return run


LOST_WORKER = (
    "a DataLoader worker died ({}), most often because it ran out of memory. `data.num_workers=0` works without "
    "workers. Resume from the last checkpoint with `ckpt_path=last`."
)
LOST_PROCESS = (
    "error: another process of this run has ended ({}). Its own messages or its machine's log give the reason; often "
    "it ran out of memory and was killed. Resume from the last checkpoint with `ckpt_path=last`."
)
COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "fit": ("train an adapter on pairs of record and Typst source", _train("fit")),
    "validate": ("measure the loss on held-out pairs", _train("validate")),
    "test": ("measure the loss, and metrics of the generated sources, on test pairs", _train("test")),
    "plan": ("predict what a fit takes and choose its batch size", _small("plan")),
    "predict": ("turn records into Typst source", _train("predict")),
    "generate": ("turn records into Typst and PDF with an adapter, in few flags", _small("generate")),
    "serve": ("serve documents over HTTP, in OpenAI's form as well", _small("serve")),
    "app": ("open a web page that makes documents from records", _small("app")),
    "lengths": ("show how long the samples are and what a maximum length would cost", _small("lengths")),
    "score": ("compile and score documents that exist, and write a report", _small("score")),
    "compile": ("turn Typst files into PDFs, safely", _small("compile")),
    "export": ("write what was trained as merged weights, GGUF, for Ollama, vLLM or the hub", _small("export")),
    "convert": ("write a first-generation Qwen as Qwen2, for other engines", _small("convert")),
    "doctor": ("show what this machine can run", _small("doctor")),
    "completion": ("print the shell completion script (bash, zsh, fish, tcsh)", _small("completion")),
}


def usage() -> str:
    """Returns the help text of the command line."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary}" for name, (summary, _) in COMMANDS.items())
    return (
        "usage: typst-lit [--help] [--version] COMMAND ...\n\n"
        "Teach a small language model to write Typst documents.\n\n"
        f"commands:\n{rows}\n\n"
        "`typst-lit COMMAND --help` shows a command's options. To begin:\n"
        "  typst-lit fit --config configs/colab_t4.yaml --data.path pairs.json\n"
        "  typst-lit generate --model runs/default --input records.json --output documents.json --pdf\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, or 1 after an error that the user can mend, or 2 for bad usage."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"typst-lit {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"typst-lit: there is no command '{args[0]}'. Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    _set_up_logging()
    use_flags(Flags())
    try:
        COMMANDS[args[0]][1](args[1:])
    except RunStopped as stop:
        resumed = ["--ckpt_path", "last"] if stop.resumable else []
        again = shlex.join(["typst-lit", *_without_checkpoint(args), *resumed])
        print(f"{translate(stop)}\nGo on with:\n  {again}", file=sys.stderr)
        return stop.status
    except UserError as error:
        print(f"error: {translate(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except SystemExit as stop:
        # Lightning turns Ctrl-C into sys.exit(1), and a SIGTERM into an exit of its own
        if isinstance(stop.__context__, KeyboardInterrupt) or type(stop).__name__ == "SIGTERMException":
            return _interrupted()
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        return _interrupted()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # found when a stream writes: it has no name
        if error.filename is None and not full:
            raise
        way_out = " Free some space, or name another place. What was finished before is whole." if full else ""
        named = f"{error.filename}: " if error.filename else ""
        print(f"error: {named}{error.strerror}.{way_out}", file=sys.stderr)
        return 1
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            # torch raises this wherever the main thread happens to be, on the way out of another fault as well
            print(f"error: {translate(_cause(error) or LOST_WORKER.format(error))}", file=sys.stderr)
            return 1
        if _lost_process(error):
            print(translate(LOST_PROCESS.format(str(error).strip().splitlines()[0])), file=sys.stderr)
            return 1
        if not _out_of_memory(error):
            raise
        print(f"error: out of memory: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def _lost_process(error: Exception) -> bool:
    """Tells whether an error only says that another process of the run is gone."""
    if "torch.distributed" not in sys.modules:
        return False
    from torch.distributed import DistError

    ways = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo raises RuntimeError
    return isinstance(error, DistError) or (type(error) is RuntimeError and any(way in str(error) for way in ways))


def _without_checkpoint(args: Sequence[str]) -> list[str]:
    """Returns a command's arguments without those that say where it goes on."""
    kept, skip = [], False
    for arg in args:
        if not skip and not arg.startswith("--ckpt_path"):
            kept.append(arg)
        skip = arg == "--ckpt_path"
    return kept


def _interrupted() -> int:
    print(
        "interrupted. `fit` goes on from its last checkpoint with --ckpt_path last, `predict` when run again.",
        file=sys.stderr,
    )
    return 130


def _cause(error: BaseException) -> UserError | None:
    """Returns the fault that was being handled when an exception came up, if it is one that says what to do."""
    before = error.__context__
    return before if before is None or isinstance(before, UserError) else _cause(before)


def _out_of_memory(error: Exception) -> bool:
    if "typst_lit.model.oom" not in sys.modules:
        return isinstance(error, MemoryError)
    from typst_lit.model.oom import is_out_of_memory

    return is_out_of_memory(error)


def _set_up_logging() -> None:
    """Shows this package's messages as plain text on standard error, from the first process of a run only."""
    log = logging.getLogger("typst_lit")
    if not log.handlers:
        handler = logging.StreamHandler(_StandardError())
        handler.setFormatter(_MessageFormatter())
        log.addHandler(handler)
        log.propagate = False
    # bitsandbytes warns on import that an optional package for the CPU is not there
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    first = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"
    log.setLevel(logging.INFO if first else logging.ERROR)
    _quiet_dependencies()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def _quiet_dependencies() -> None:
    """Hides warnings that dependencies give about each other's code: the user can do nothing about them."""
    for message in (
        "`loftq_config` specified",  # PEFT, about its own default
        "`is_gradient_checkpointing` is deprecated",  # PEFT, about transformers
        "`gradient_checkpointing_enable` is deprecated",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning, torch
        "Total length of `list` across ranks is zero",  # no validation data: asked for, or said elsewhere
        ".*your dataloader is not resumable",  # the data module is
        ".*does not have many workers",  # batches are ready-made rows of a table: a worker would only cost memory
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


class _MessageFormatter(logging.Formatter):
    """Plain messages with the flags of the command that runs; warnings are marked."""

    def format(self, record: logging.LogRecord) -> str:
        return ("warning: " if record.levelno == logging.WARNING else "") + translate(super().format(record))


class _StandardError:
    """Standard error as it is when a message comes, not as it was when logging was set up."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
