"""The LightningModule: a base model with an adapter, its steps, its optimizer, and what a checkpoint keeps of it."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.callbacks.watchdog import Watchdog
from typst_lit.data.batching import Batch, PromptBatch, split_batch
from typst_lit.data.prompts import PromptTemplate
from typst_lit.errors import UserError
from typst_lit.inference.engine import Completion, generate
from typst_lit.inference.prompt_lookup import DraftCorpus
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.model.activation_checkpointing import (
    Checkpointing,
    enable_activation_checkpointing,
    offload_activations,
    policy_of,
)
from typst_lit.model.adapters import (
    adapter_base,
    adapter_directory,
    adapter_template,
    attach_adapter,
    check_adapter,
    describe_adapter,
    load_adapter,
    trainable_names,
)
from typst_lit.model.attention import attention_backend, has_no_cross_contamination, use_packed_attention
from typst_lit.model.backbones import Backbone, PretrainedBackbone, compute_dtype, keep_differentiable
from typst_lit.model.kernels import fuse_lora_forward, use_liger
from typst_lit.model.losses import chunked_cross_entropy
from typst_lit.model.lr import Schedule, learning_rate_factor
from typst_lit.model.memory import is_out_of_memory, split_batch_loss, trim_freed_memory
from typst_lit.model.sharding import ignore_frozen_in_ddp, shard_layers

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# The loss that is differentiated is the sum over tokens divided by this, and the gradients are divided by the step's
# true token count when the step is complete. Any power of two gives the same bits; this one is near a usual step's
# count, which keeps fp16 gradients in range.
TOKEN_SCALE = 4096.0


class TypstModule(LightningModule):
    """A causal language model that learns to write Typst.

    Args:
        base_model: hub name or folder of the base model.
        revision: branch, tag or commit on the hub.
        use_4bit: load the linear layers in 4 bits (NF4, double quantisation); else in 16 (32 on the CPU).
        trust_remote_code: run code that a hub repository brings. Off unless you have read it.
        backbone: another way to load the base model.
        adapter: any PEFT config; null trains all weights, which needs use_4bit false. Target modules are a list of
            names, or one of the presets attention, attention+mlp, all-linear.
        adapter_path: a saved adapter to go on from, or to predict with. It replaces ``adapter``.
        learning_rate: the peak of the schedule.
        weight_decay: AdamW's decay, not applied to norms and biases.
        schedule: how the learning rate goes on after the warm-up.
        gradient_checkpointing: what the backward pass computes a second time instead of keeping it: true or "full" for
            each layer, "selective" for all of it but its attention, "offload" for each layer with its input kept in
            the host's memory, false or "none" for nothing.
        optimizer: AdamW, or that of bitsandbytes with a state of 8 bits, which may also be paged to the host (CUDA).
        liger: use Liger's Triton kernels for norms, rotations and gated layers (an NVIDIA or AMD GPU, and
            ``pip install liger-kernel``).
        compile: compile each layer with torch.compile: minutes at the start, faster steps after it.
        shard_base: divide the frozen base model among the processes (FSDP2), for one that no single device can hold.
            It needs use_4bit false; no documents are generated in validations.
        generation: how documents are sampled.
        metrics: further metrics by name, beside those that every evaluation takes. A `DocumentMetric` is given
            documents, any other one of torchmetrics the generated and the reference sources.
    """

    def __init__(
        self,
        base_model: str = "Qwen/Qwen3-1.7B",
        revision: str | None = None,
        use_4bit: bool = True,
        trust_remote_code: bool = False,
        backbone: Backbone = lazy_instance(PretrainedBackbone),
        adapter: PeftConfig | None = lazy_instance(
            LoraConfig, r=16, lora_alpha=32, lora_dropout=0.05, target_modules="attention"
        ),
        adapter_path: str | None = None,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "linear",
        gradient_checkpointing: Checkpointing | bool = True,
        optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw",
        liger: bool = False,
        compile: bool = False,
        shard_base: bool = False,
        generation: GenerationSettings = GenerationSettings(),
        metrics: dict[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise UserError(f"model.learning_rate must be above 0, not {learning_rate}.")
        if weight_decay < 0:
            raise UserError(f"model.weight_decay must be 0 or more, not {weight_decay}.")
        if adapter is None and adapter_path is None and use_4bit:
            raise UserError("4-bit weights can't be trained: keep an adapter, or give --model.use_4bit false.")
        if shard_base and use_4bit:
            raise UserError(
                "model.shard_base divides 16-bit weights: give --model.use_4bit false. With 4-bit ones, FSDP is known "
                "to return wrong weights without an error."
            )
        if shard_base and adapter is None and adapter_path is None:
            raise UserError("model.shard_base divides the frozen base model: keep an adapter to train.")
        if adapter is not None:
            adapter.to_dict()  # the default is a lazy instance, which makes itself when a method is called
        self.base_model = base_model
        self.revision = revision
        self.use_4bit = use_4bit
        self.trust_remote_code = trust_remote_code
        self.backbone = backbone
        self.adapter = adapter
        self.adapter_path = adapter_path
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.gradient_checkpointing = policy_of(gradient_checkpointing)
        self.optimizer = optimizer
        self.liger = liger
        self.compile_layers = compile
        self.shard_base = shard_base
        self.generation = generation
        self.metrics = nn.ModuleDict(metrics or {})
        self._shelf = DraftCorpus()  # finished documents, for others to copy from
        self.warmup_steps = 0  # set by the warm-up callback, which knows how long the run is
        self.strict_loading = False  # a checkpoint holds the trainable weights only; on_load_checkpoint checks those
        self.model: Any = None  # PreTrainedModel, with an adapter PeftModel; loaded by configure_model
        # Two sums instead of torchmetrics' MeanMetric, which forgets the weights where NaN is not to be hidden.
        self.eval_loss = SumMetric(nan_strategy="disable").set_dtype(torch.float64)
        self.eval_tokens = SumMetric(nan_strategy="disable").set_dtype(torch.float64)
        self.watchdog = Watchdog()  # the one among the trainer's callbacks takes its place
        self.parts = 1  # that each batch is run in
        self.divided = False  # the base model, among the processes
        self._window: list[tuple[Tensor, Tensor, list[str]]] = []  # loss sum, tokens and origins of each micro-batch

    # Set-up

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.backbone.load_tokenizer(self.base_model, self.revision, self.trust_remote_code)

    @cached_property
    def adapter_template(self) -> PromptTemplate | None:
        """The prompt template that the adapter in use was trained with."""
        return adapter_template(adapter_directory(self.adapter_path)) if self.adapter_path else None

    def prepare_data(self) -> None:
        """Downloads the base model once a machine, before all its processes load it."""
        self.backbone.fetch(self.base_model, self.revision)

    def configure_model(self) -> None:
        """Loads the model on its device. Runs after the data was read, so that faults of the data come first."""
        if self.model is not None:
            return
        saved = adapter_directory(self.adapter_path) if self.adapter_path else None
        made_for = adapter_base(saved) if saved else None
        if made_for and made_for != self.base_model:
            log.warning("The adapter %s was made for %s; it is put on %s.", saved, made_for, self.base_model)
        training = self._fitting
        self.divided = self.shard_base and training
        if training:
            self._check_positions()
        if self.divided:
            self._check_processes()
        if saved:
            config = self.backbone.load_config(self.base_model, self.revision, self.trust_remote_code)
            check_adapter(saved, self.base_model, config)
        log.info("Loading %s%s ...", self.base_model, " in 4 bits" if self.use_4bit else "")
        device = torch.device("cpu") if self.divided else self.device_to_load_on
        dtype = compute_dtype(self.device_to_load_on)
        model = self.backbone.load_model(
            self.base_model, self.revision, self.trust_remote_code, self.use_4bit, device, dtype
        )
        if saved:
            log.info("Adapter: %s", saved)
            self.model = load_adapter(model, saved, trainable=training)
        elif self.adapter is not None:
            if not training:
                log.warning("No adapter is given (--model.adapter_path): %s answers untrained.", self.base_model)
            self.model = attach_adapter(model, self.adapter)
        else:
            self.model = model
        if training:
            if self.device_to_load_on.type == "cpu":
                trim_freed_memory(model.get_decoder().layers)
            keep_differentiable(self.model)
            use_packed_attention(model)
            fuse_lora_forward(self.model)
            if self.liger:
                use_liger(model)
            packing = getattr(self.trainer.datamodule, "packing", False)  # type: ignore[attr-defined]
            if packing:
                self._check_packing(model)
            for parameter in self.model.parameters():
                if parameter.requires_grad:  # PEFT leaves modules_to_save and the like in 16 bits
                    parameter.data = parameter.data.float()
            if self.gradient_checkpointing != "none":
                if saved is None and isinstance(self.adapter, PrefixTuningConfig):
                    raise UserError(
                        "model.adapter: prefix tuning puts its weights into the key-value cache, which gradient "
                        "checkpointing switches off. Use --model.gradient_checkpointing false, or LoRA."
                    )
                enable_activation_checkpointing(model, self.gradient_checkpointing)
            if self.compile_layers:
                for layer in model.get_decoder().layers:
                    layer.compile(dynamic=True)
            if self.divided:
                shard_layers(model, self.device_to_load_on)
            ignore_frozen_in_ddp(self)
            kernel = attention_backend(self.device_to_load_on, dtype, packed=packing)
            log.info("%s. Attention kernel: %s.", describe_adapter(self.model), kernel)

    def _check_positions(self) -> None:
        config = self.backbone.load_config(self.base_model, self.revision, self.trust_remote_code)
        positions = getattr(config, "max_position_embeddings", None)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        longest = int(data.train_lengths[0].max()) if hasattr(data, "train_lengths") else 0
        if positions and longest > positions:
            raise UserError(
                f"data.max_length: there are samples of {longest} tokens, and {self.base_model} knows {positions} "
                f"places. Use --data.max_length {positions} (what is longer is dropped and named), or another model."
            )

    def _check_processes(self) -> None:
        if self.trainer.world_size == 1:
            raise UserError(
                "model.shard_base: there is one process only. Give --trainer.devices 2 or more, or leave it out."
            )
        if self.watchdog.out_of_memory == "split":
            raise UserError(
                "model.shard_base: all processes pass the layers together, so none can split its batch alone. Leave "
                "--watchdog.out_of_memory and --plan out."
            )

    def _check_packing(self, model: PreTrainedModel) -> None:
        way_out = "Use --data.packing false."
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise UserError(
                f"data.packing: {self.model.active_peft_config.peft_type} knows one document a row. {way_out}"
            )
        if not has_no_cross_contamination(model):
            raise UserError(
                f"data.packing: the documents of a row would see each other in a {type(model).__name__}. {way_out}"
            )

    @property
    def _fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    @property
    def device_to_load_on(self) -> torch.device:
        """The device of this process in the trainer's strategy, or else where the module is."""
        return self.trainer.strategy.root_device if self._trainer is not None else self.device

    def on_fit_start(self) -> None:
        # from_pretrained leaves the model in evaluation mode, Lightning keeps it, and transformers checkpoints
        # activations in training mode only.
        self.train()

    # Steps

    def hidden_states(self, batch: Batch) -> Tensor:
        """Returns the last hidden states (B, T, D), before the head.

        They are caught on their way out of the decoder: so every PEFT method takes part as it does in its own
        forward pass, and the head is asked for one position only.
        """
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        caught: list[Tensor] = []
        handle = base.get_decoder().register_forward_hook(lambda _m, _i, output: caught.append(output[0]))
        packed: dict[str, Any] = {}
        if batch.packed_sequences is not None:
            packed = {"position_ids": batch.position_ids, "packed_sequences": batch.packed_sequences}
        try:
            with offload_activations(self.gradient_checkpointing):
                self.model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=1, **packed)
        finally:
            handle.remove()
        return caught[-1][:, -batch.input_ids.shape[1] :]  # prompt tuning puts its own positions in front

    def summed_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over the batch's labelled tokens, and their count."""
        head = self.model.get_output_embeddings()
        return chunked_cross_entropy(self.hidden_states(batch), batch.labels, head, batch.target_positions)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._seed(batch_idx)
        factor = learning_rate_factor(
            self.trainer.global_step, self.trainer.estimated_stepping_batches, self.warmup_steps, self.schedule
        )
        for group in self.trainer.optimizers[0].param_groups:
            # Set at every step, from the settings: a checkpoint's optimizer state does not bring its own back.
            group["lr"] = self.learning_rate * factor
            group["weight_decay"] = self.weight_decay if group["decayed"] else 0.0

    def _seed(self, batch_idx: int) -> None:
        # What chance decides is a function of seed and step, so that a resumed run goes on as if it had never stopped.
        place = [int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.watchdog.out_of_memory == "split" or self.parts > 1:
            loss, tokens = self._that_fits(batch, lambda: self._loss_in_parts(batch, batch_idx))
        else:
            loss, tokens = self.summed_loss(batch)
        self._window.append((loss.detach(), tokens, batch.origins))
        # Lightning divides by the number of micro-batches, which on_before_optimizer_step has no use for.
        return loss / TOKEN_SCALE * self.trainer.accumulate_grad_batches

    def _loss_in_parts(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns `summed_loss` with its gradients, computed from parts of the batch."""
        self._seed(batch_idx)
        scale = torch.full((), 1 / TOKEN_SCALE, device=self.device)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return split_batch_loss(
            self.summed_loss, batch, self.parts, parameters, scaler.scale(scale) if scaler else scale
        )

    def _that_fits(self, batch: Batch, compute: Callable[[], Result]) -> Result:
        """Returns what is computed from a batch, and whenever memory runs out, tries again with less at a time."""
        while True:
            try:
                return compute()
            except Exception as error:
                may_split = self.watchdog.out_of_memory == "split" and is_out_of_memory(error)
                if not (may_split and self._take_less(batch)):
                    raise
            torch.cuda.empty_cache()  # only here, past the exception, is the memory of the frames it came through free

    def _take_less(self, batch: Batch) -> bool:
        """Runs what follows in more parts, or keeps less for the backward pass; returns whether it could."""
        if self.parts < len(batch.lengths):
            self.parts *= 2
            log.warning(
                "Memory ran out at step %d. From here on, each batch is run in %d parts: the same samples and the same "
                "gradient, nothing is lost.", self.trainer.global_step + 1, self.parts,
            )  # fmt: skip
            return True
        if self.gradient_checkpointing in ("none", "selective"):
            self.gradient_checkpointing = "full"
            base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            enable_activation_checkpointing(base, "full")
            log.warning(
                "Memory ran out at step %d. From here on, every layer is computed again in the backward pass "
                "(--model.gradient_checkpointing full).", self.trainer.global_step + 1,
            )  # fmt: skip
            return True
        return False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the accumulated sum of gradients into the mean over all labelled tokens of the step, and logs it.

        Raises:
            UserError: when the watchdog stops the run.
        """
        losses = torch.stack([loss for loss, _, _ in self._window])
        tokens = torch.stack([count for _, count, _ in self._window]).sum()
        origins = [origin for _, _, origin in self._window]
        self._window.clear()
        gathered: Any = self.all_gather(torch.stack([losses.sum(), tokens.to(losses.dtype)]))
        totals = gathered.reshape(-1, 2).sum(0)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The strategy averages over processes what should be summed: hence the world size.
        torch._foreach_mul_(gradients, TOKEN_SCALE * self.trainer.world_size / totals[1].clamp(min=1))
        norm = torch.nn.utils.get_total_norm(gradients)
        loss_sum, token_count, norm_value, *each = torch.cat([totals, norm[None], losses]).tolist()  # the only sync
        loss = loss_sum / max(1.0, token_count)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        batches = list(zip(each, origins, strict=True))
        if self.watchdog.allows(self.trainer, loss, norm_value, batches, overflow_allowed=scaled):
            self.log("train_loss", loss, prog_bar=True)
            self.log("grad_norm", norm_value)
        else:
            optimizer.zero_grad()  # without gradients, the optimizer changes nothing
        self.log("lr", optimizer.param_groups[0]["lr"])

    def _evaluate(self, batch: Batch) -> None:
        found = self._that_fits(batch, lambda: [self.summed_loss(part) for part in split_batch(batch, self.parts)])
        for loss, tokens in found:
            self.eval_loss.update(loss)
            self.eval_tokens.update(tokens)

    def _log_evaluation(self, stage: str) -> None:
        loss = (self.eval_loss.compute() / self.eval_tokens.compute()).float()
        self.eval_loss.reset()
        self.eval_tokens.reset()
        # The metrics have added up all processes already; averaging equal values only keeps Lightning from warning.
        self.log(f"{stage}_loss", loss, prog_bar=True, sync_dist=True)
        self.log(f"{stage}_perplexity", loss.exp(), sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Completion]:
        return self.complete(batch.prompts)

    def complete(self, prompts: list[list[int]]) -> list[Completion]:
        """Generates a document for the ids of each prompt."""
        return generate(self.model, self.tokenizer, prompts, self.generation, self._shelf)

    # Optimizer and checkpoints

    def configure_optimizers(self) -> torch.optim.Optimizer:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        # Norm weights and biases are vectors; everything that should decay is a matrix.
        decayed = [p for _, p in named if p.ndim >= 2]
        rest = [p for _, p in named if p.ndim < 2]
        groups = [{"params": decayed, "decayed": True}, {"params": rest, "decayed": False}]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate)
        if self.device_to_load_on.type != "cuda":
            raise UserError(f"model.optimizer {self.optimizer} needs an NVIDIA GPU: use --model.optimizer adamw.")
        import bitsandbytes

        kind = bitsandbytes.optim.AdamW8bit if self.optimizer == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
        return kind(groups, lr=self.learning_rate)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns the trainable weights only: frozen ones come from the base model, and 4-bit ones don't reload."""
        names = trainable_names(self)
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["parts"] = self.parts

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Checks that the checkpoint has every trainable weight, and no other.

        Raises:
            UserError: when it was made with another adapter configuration.
        """
        self.parts = checkpoint.get("parts", 1)
        theirs = {name: value.shape for name, value in checkpoint["state_dict"].items()}
        ours = {n: p.shape for n, p in self.named_parameters() if (p.requires_grad if self._fitting else n in theirs)}
        if ours != theirs:
            odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            name = odd[0]
            raise UserError(
                f"the checkpoint was made with another adapter or base model: {len(odd)} weights differ, the first "
                f"being {name} (checkpoint {_shape(theirs.get(name))}, this run {_shape(ours.get(name))}). Give the "
                "settings it was made with (config.yaml in its run directory), or start anew without --ckpt_path."
            )


def _shape(shape: torch.Size | None) -> str:
    return "has none" if shape is None else "x".join(map(str, shape))
