"""The LightningModule: training and evaluation steps, the optimizer, and what a checkpoint saves."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from peft import LoraConfig, PeftConfig
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from transformers import PreTrainedTokenizerBase

from typst_lit.contract.text_contract import TextContract
from typst_lit.data.batching import Batch, RecordBatch, split_batch
from typst_lit.data.prompts import PromptTemplate
from typst_lit.errors import UserError
from typst_lit.model import forward
from typst_lit.model.activation_checkpointing import (
    ActivationCheckpointing,
    enable_activation_checkpointing,
    resolve_policy,
)
from typst_lit.model.adapters import (
    attach_adapter,
    base_model,
    check_adapter,
    describe_adapter,
    load_adapter,
    trainable_names,
)
from typst_lit.model.attention import attention_backend
from typst_lit.model.backbones import Backbone, PretrainedBackbone, compute_dtype
from typst_lit.model.locations import (
    AdapterMetadata,
    adapter_base,
    adapter_directory,
    adapter_metadata,
    adapter_template,
)
from typst_lit.model.lr import LearningRate, Schedule, ScheduleName
from typst_lit.model.oom import run_with_oom_fallback, split_batch_loss
from typst_lit.model.optimizers import OptimizerSetting, build_optimizer
from typst_lit.model.preparation import check_positions, prepare_for_training
from typst_lit.model.saving import check_same_weights
from typst_lit.model.sharding import check_sharding, ignore_frozen_in_ddp, shard_layers
from typst_lit.model.step_guard import MicroBatch, StepGuard

log = logging.getLogger(__name__)

# The loss that is differentiated is the sum over tokens divided by this, and the gradients are divided by the step's
# true number of tokens when the step is complete. Any power of two gives the same bits; this one is close to a typical
# step's number of tokens, which keeps fp16 gradients in range.
TOKEN_SCALE = 4096.0


class TypstModule(LightningModule):
    """A causal language model that learns to write Typst.

    >>> module = TypstModule("typst-nano", learning_rate=1e-4, schedule="cosine", warmup_steps=10)
    >>> module.learning_rate.at(9, total_steps=100)
    0.0001
    >>> trainer = Trainer(max_epochs=3, accumulate_grad_batches=4)  # doctest: +SKIP
    >>> trainer.fit(module, TypstDataModule(path="pairs.json"))  # doctest: +SKIP

    Args:
        base_model: hub name or directory of the base model.
        revision: branch, tag or commit on the hub.
        use_4bit: load the linear layers in 4 bits (NF4, double quantization); else in 16 (32 on the CPU).
        trust_remote_code: run code that a hub repository brings. Off unless you have read it.
        trust_template: class path of the prompt template that ``adapter_path`` was trained with, if it is neither part
            of typst_lit nor of a plugin: the module is imported. Nothing else that an adapter names is.
        backbone: another way to load the base model.
        adapter: any PEFT config; null trains all weights, which needs use_4bit false. Target modules are a list of
            names, or one of the presets attention, attention+mlp, all-linear.
        adapter_path: a saved adapter to continue training, or to predict with. It replaces ``adapter``.
        learning_rate: its peak, after the warm-up.
        schedule: how the learning rate changes after the warm-up.
        warmup_steps: number of optimizer steps in which the learning rate rises to its peak.
        warmup_ratio: the warm-up's share of all steps, from 0 to 1; it replaces ``warmup_steps``.
        weight_decay: not applied to norms and biases.
        optimizer: AdamW, or that of bitsandbytes with an 8-bit state, which may also be paged to the host (CUDA); or
            any optimizer class.
        gradient_checkpointing: what the backward pass recomputes instead of saving it: true or "full" for each layer,
            "selective" for all of it but its attention, "offload" for each layer with its input saved in the host's
            memory, false or "none" for nothing.
        liger: use Liger's Triton kernels for norms, rotary embeddings and gated layers (an NVIDIA or AMD GPU, and
            ``pip install liger-kernel``).
        compile: compile each layer with torch.compile: minutes at the start, faster steps after it.
        shard_base: shard the frozen base model over the devices (FSDP2), for one that no single device can hold.
            It needs use_4bit false; no documents are generated in validations.
        metrics: further metrics by name, in addition to those of every evaluation. A `DocumentMetric` receives
            documents, any other one of torchmetrics the generated and the reference sources.
        step_guard: what to do about steps that would damage the weights, and when memory runs out.

    Raises:
        UserError: when settings are out of range or contradict each other.
    """

    def __init__(
        self,
        base_model: str = "Qwen/Qwen3-1.7B",
        revision: str | None = None,
        use_4bit: bool = True,
        trust_remote_code: bool = False,
        trust_template: str | None = None,
        backbone: Backbone = lazy_instance(PretrainedBackbone),
        adapter: PeftConfig | None = lazy_instance(
            LoraConfig, r=16, lora_alpha=32, lora_dropout=0.05, target_modules="attention"
        ),
        adapter_path: str | None = None,
        learning_rate: float = 2e-4,
        schedule: ScheduleName | Schedule = "linear",
        warmup_steps: int = 100,
        warmup_ratio: float | None = None,
        weight_decay: float = 0.01,
        optimizer: OptimizerSetting = "adamw",
        gradient_checkpointing: ActivationCheckpointing | bool = True,
        liger: bool = False,
        compile: bool = False,
        shard_base: bool = False,
        metrics: dict[str, Metric] | None = None,
        step_guard: StepGuard | None = None,
    ) -> None:
        super().__init__()
        if weight_decay < 0:
            raise UserError(f"must be 0 or more, not {weight_decay}.", setting="model.weight_decay")
        trains_adapter = adapter is not None or adapter_path is not None
        if use_4bit and not trains_adapter:
            raise UserError("4-bit weights can't be trained.", hint="Use an adapter, or `model.use_4bit=false`.")
        if shard_base and use_4bit:
            raise UserError(
                "only 16-bit weights can be sharded: with 4-bit ones, FSDP is known to return wrong weights without an "
                "error.",
                setting="model.shard_base",
                hint="Use `model.use_4bit=false`.",
            )
        if shard_base and not trains_adapter:
            raise UserError("only a frozen base model is sharded.", setting="model.shard_base", hint="Use an adapter.")
        if adapter is not None:
            adapter.to_dict()  # the default is a lazy instance, which is created when a method is called
        self.base_model = base_model
        self.revision = revision
        self.use_4bit = use_4bit
        self.trust_remote_code = trust_remote_code
        self.trust_template = trust_template
        self.backbone = backbone
        self.adapter = adapter
        self.adapter_path = adapter_path
        self.learning_rate = LearningRate(learning_rate, schedule, warmup_steps, warmup_ratio)
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.gradient_checkpointing = resolve_policy(gradient_checkpointing)
        self.liger = liger
        self.compile_layers = compile
        self.shard_base = shard_base
        self.metrics = nn.ModuleDict(metrics or {})
        self.step_guard = step_guard or StepGuard()
        self.generate_documents: Callable[[RecordBatch], Sequence[Any]] | None = None  # what `predict_step` calls
        self.strict_loading = False  # a checkpoint has the trainable weights only; on_load_checkpoint checks those
        self.contract: TextContract | None = None  # of the training pairs; exported with the weights
        self.model: Any = None  # PreTrainedModel, with an adapter PeftModel; loaded by configure_model
        # Two sums instead of torchmetrics' MeanMetric, which drops the weights where NaN must not be hidden.
        self.eval_loss = SumMetric(nan_strategy="disable").set_dtype(torch.float64)
        self.eval_tokens = SumMetric(nan_strategy="disable").set_dtype(torch.float64)
        self.num_splits = 1  # of every micro-batch; more once memory has run out
        self._window: list[tuple[Tensor, Tensor, list[str]]] = []  # loss sum, tokens and origins of each micro-batch

    # Set-up

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.backbone.load_tokenizer(self.base_model, self.revision, self.trust_remote_code)

    @cached_property
    def adapter_template(self) -> PromptTemplate | None:
        """The prompt template that the adapter in use was trained with."""
        if not self.adapter_path:
            return None
        return adapter_template(adapter_directory(self.adapter_path), self.trust_template)

    @cached_property
    def adapter_metadata(self) -> AdapterMetadata:
        """What the files of ``adapter_path`` say of its training; nothing without one."""
        return adapter_metadata(adapter_directory(self.adapter_path)) if self.adapter_path else AdapterMetadata()

    @property
    def is_sharded(self) -> bool:
        """Whether the base model is sharded over the devices: only in fit."""
        return self.shard_base and self.is_fitting

    @property
    def is_fitting(self) -> bool:
        """Whether the trainer runs `fit`."""
        return self._has_trainer and self.trainer.state.fn == TrainerFn.FITTING

    @property
    def _has_trainer(self) -> bool:
        try:
            return self.trainer is not None
        except RuntimeError:  # as in evaluation of a module on its own
            return False

    @property
    def load_device(self) -> torch.device:
        """The device of this rank in the trainer's strategy, or else the one the module is on."""
        return self.trainer.strategy.root_device if self._has_trainer else self.device

    @property
    def _compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.load_device, str(self.trainer.precision) if self._has_trainer else None)

    def prepare_data(self) -> None:
        """Downloads the base model once per machine, before all its ranks load it."""
        self.backbone.fetch(self.base_model, self.revision)

    def configure_model(self) -> None:
        """Loads the model on its device. Runs after the data was read, so that errors in the data come first."""
        if self.model is not None:
            return
        if self.is_fitting:
            config = self.backbone.load_config(self.base_model, self.revision, self.trust_remote_code)
            lengths = getattr(self._datamodule, "train_lengths", None)
            check_positions(config, self.base_model, int(lengths[0].max()) if lengths is not None else 0)
        if self.is_sharded:
            check_sharding(self.trainer.world_size, self.step_guard.out_of_memory)
        self.model = self._load_model()
        if self.is_fitting:
            self._prepare_for_training()

    def _load_model(self) -> Any:
        directory = adapter_directory(self.adapter_path) if self.adapter_path else None
        if directory:
            trained_on = adapter_base(directory)
            if trained_on and trained_on != self.base_model:
                log.warning(
                    "The adapter %s was trained on %s; loading it on %s.", directory, trained_on, self.base_model
                )
            config = self.backbone.load_config(self.base_model, self.revision, self.trust_remote_code)
            check_adapter(directory, self.base_model, config)
        log.info("Loading %s%s ...", self.base_model, " in 4 bits" if self.use_4bit else "")
        model = self.backbone.load_model(
            self.base_model,
            self.revision,
            self.trust_remote_code,
            self.use_4bit,
            torch.device("cpu") if self.is_sharded else self.load_device,
            self._compute_dtype,
        )
        if directory:
            log.info("Adapter: %s", directory)
            return load_adapter(model, directory, trainable=self.is_fitting)
        if self.adapter is None:
            return model
        if not self.is_fitting:
            log.warning(
                "No adapter is given (`model.adapter_path`): using the untrained base model %s.", self.base_model
            )
        return attach_adapter(model, self.adapter)

    def _prepare_for_training(self) -> None:
        packing = getattr(self._datamodule, "packing", False)
        prepare_for_training(
            self.model, self.load_device, self.gradient_checkpointing, packing, self.liger, self.compile_layers
        )
        if self.is_sharded:
            shard_layers(base_model(self.model), self.load_device)
        ignore_frozen_in_ddp(self)
        backend = attention_backend(self.load_device, self._compute_dtype, packed=packing)
        log.info("%s. Attention kernel: %s.", describe_adapter(self.model), backend)

    @property
    def _datamodule(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        # from_pretrained leaves the model in evaluation mode, Lightning keeps it there, and transformers checkpoints
        # activations in training mode only.
        self.train()

    # Steps

    def summed_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over the batch's labeled tokens, and the number of these tokens."""
        return forward.summed_loss(self.model, batch, self.gradient_checkpointing)

    def on_train_start(self) -> None:
        self.learning_rate.warn_if_shortened(self.trainer.estimated_stepping_batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._seed(batch_idx)
        learning_rate = self.learning_rate.at(self.trainer.global_step, self.trainer.estimated_stepping_batches)
        for group in self.trainer.optimizers[0].param_groups:
            # Set at every step, from the settings: the optimizer state of a checkpoint does not restore its own.
            group["lr"] = learning_rate
            group["weight_decay"] = self.weight_decay if group["decayed"] else 0.0

    def _seed(self, batch_idx: int) -> None:
        # Random numbers are a function of seed and step, so that a resumed run equals an uninterrupted one.
        entropy = [int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.step_guard.out_of_memory == "split" or self.num_splits > 1:
            loss, tokens = run_with_oom_fallback(
                lambda: self._split_loss(batch, batch_idx), lambda: self._reduce_memory(batch)
            )
        else:
            loss, tokens = self.summed_loss(batch)
        self._window.append((loss.detach(), tokens, batch.origins))
        # Lightning divides by the number of micro-batches, which on_before_optimizer_step has no use for.
        return loss / TOKEN_SCALE * self.trainer.accumulate_grad_batches

    def _split_loss(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns `summed_loss` with its gradients, computed from smaller batches."""
        self._seed(batch_idx)
        scale = torch.full((), 1 / TOKEN_SCALE, device=self.device)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        scaled = self._scaler.scale(scale) if self._scaler else scale
        return split_batch_loss(self.summed_loss, batch, self.num_splits, parameters, scaled)

    @property
    def _scaler(self) -> Any:
        """The gradient scaler of fp16."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _reduce_memory(self, batch: Batch) -> bool:
        """Splits every following batch further, or recomputes more; returns whether there was a way."""
        if self.step_guard.out_of_memory != "split":
            return False
        step = self.trainer.global_step + 1
        if self.num_splits < len(batch.lengths):
            self.num_splits *= 2
            log.warning(
                "Memory ran out at step %d. From here on, each batch is split into %d: the same samples and the same "
                "gradient, nothing is lost.",
                step,
                self.num_splits,
            )
            return True
        if self.gradient_checkpointing in ("none", "selective"):
            self.gradient_checkpointing = "full"
            enable_activation_checkpointing(base_model(self.model), "full")
            log.warning(
                "Memory ran out at step %d. From here on, every layer is recomputed in the backward pass "
                "(`model.gradient_checkpointing=full`).",
                step,
            )
            return True
        return False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the accumulated sum of gradients into the mean over all labeled tokens of the step, and logs it.

        Raises:
            UserError: when the step guard stops the run.
        """
        losses = torch.stack([loss for loss, _, _ in self._window])
        tokens = torch.stack([count for _, count, _ in self._window]).sum()
        origins = [origin for _, _, origin in self._window]
        self._window.clear()
        gathered: Any = self.all_gather(torch.stack([losses.sum(), tokens.to(losses.dtype)]))
        totals = gathered.reshape(-1, 2).sum(0)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The strategy averages over ranks what should be summed: hence the world size.
        torch._foreach_mul_(gradients, TOKEN_SCALE * self.trainer.world_size / totals[1].clamp(min=1))
        norm = torch.nn.utils.get_total_norm(gradients)
        # The only synchronization with the device.
        loss_sum, num_tokens, grad_norm, *values = torch.cat([totals, norm[None], losses]).tolist()
        loss = loss_sum / max(1.0, num_tokens)
        micro_batches = [MicroBatch(*pair) for pair in zip(values, origins, strict=True)]
        step = self.trainer.global_step + 1
        if self.step_guard.allows_step(step, loss, grad_norm, micro_batches, fp16_scaler=self._scaler is not None):
            self.log("train_loss", loss, prog_bar=True)
            self.log("grad_norm", grad_norm)
        else:
            optimizer.zero_grad()  # without gradients, the optimizer changes nothing
        self.log("lr", optimizer.param_groups[0]["lr"])

    def _evaluate(self, batch: Batch) -> None:
        for loss, tokens in run_with_oom_fallback(
            lambda: [self.summed_loss(part) for part in split_batch(batch, self.num_splits)],
            lambda: self._reduce_memory(batch),
        ):
            self.eval_loss.update(loss)
            self.eval_tokens.update(tokens)

    def _log_evaluation(self, stage: str) -> float:
        """Logs the mean loss of an evaluation, over all ranks, and returns it."""
        loss = (self.eval_loss.compute() / self.eval_tokens.compute()).float()
        self.eval_loss.reset()
        self.eval_tokens.reset()
        # The metrics are summed over all ranks already; averaging equal values only keeps Lightning from warning.
        self.log(f"{stage}_loss", loss, prog_bar=True, sync_dist=True)
        self.log(f"{stage}_perplexity", loss.exp(), sync_dist=True)
        return float(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        val_loss = self._log_evaluation("val")
        if self.is_fitting and not self.trainer.sanity_checking:
            self.step_guard.check_val_loss(self.trainer.global_step, val_loss)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: RecordBatch, batch_idx: int) -> Sequence[Any]:
        """Returns the documents of a batch of records, generated by ``generate_documents``.

        Raises:
            UserError: when nothing was set that generates.
        """
        if self.generate_documents is None:
            raise UserError(
                "this module has nothing that generates documents.",
                hint="Set its `generate_documents`, as `typst-lit predict` does, or use a Generator.",
            )
        return self.generate_documents(batch)

    # Optimizer and checkpoints

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.optimizer, self.parameters(), self.load_device)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns the trained weights only: frozen ones come from the base model, and 4-bit ones can't be reloaded."""
        names = trainable_names(self)
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_splits"] = self.num_splits
        checkpoint["step_guard"] = self.step_guard.state_dict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Checks that the checkpoint has every trained weight, and no other, and restores what it has besides weights.

        Raises:
            UserError: when it was saved with another adapter or base model.
        """
        self.num_splits = checkpoint.get("num_splits", 1)
        self.step_guard.load_state_dict(checkpoint.get("step_guard", {}))
        trained = {
            name: parameter
            for name, parameter in self.named_parameters()
            if (parameter.requires_grad if self.is_fitting else name in checkpoint["state_dict"])
        }
        check_same_weights(checkpoint["state_dict"], trained)
