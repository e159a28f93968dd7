from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

from tests.conftest import SAMPLES
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UserError
from typst_lit.model.attention import OperatorRecorder
from typst_lit.model.module import TypstModule


def build(tiny_model, trainer_options=None, data_options=None, callbacks=(), **options):
    module = TypstModule(str(tiny_model), **options)
    data = TypstDataModule(path=str(SAMPLES), **{"val_fraction": 0, "batch_size": 2, **(data_options or {})})
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), use_distributed_sampler=False, num_sanity_val_steps=0,
        **{"max_steps": 1, **(trainer_options or {})},
    )  # fmt: skip
    return module, data, trainer


class KeepGradients(Callback):
    """Keeps the gradients of the last optimizer step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


class SameEight(TypstDataModule):
    """Eight examples, always the same, whatever the batch size."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        size = self.batch_size
        loader.batch_sampler.batches = lambda epoch: [np.arange(at, at + size) for at in range(0, 8, size)]
        return loader


def test_val_loss_is_the_mean_over_tokens_whatever_the_batches(tiny_model) -> None:
    losses, by_sample = [], []
    for size in (4, 3, 1):
        options = {"val_fraction": 0.5, "group_by": "none", "eval_batch_size": size}
        module, data, trainer = build(tiny_model, data_options=options)
        (values,) = trainer.validate(module, data, verbose=False)
        losses.append(values["val_loss"])
        if size == 1:
            with torch.inference_mode():
                by_sample = [module.summed_loss(batch) for batch in data.val_dataloader()]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)
    mean = sum(float(loss) for loss, _ in by_sample) / sum(int(tokens) for _, tokens in by_sample)
    unweighted = sum(float(loss / tokens) for loss, tokens in by_sample) / len(by_sample)
    assert losses[2] == pytest.approx(mean, rel=1e-5) != pytest.approx(unweighted, rel=1e-5)


@pytest.mark.parametrize("batch_size", [4, 2, 1])
def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny_model, batch_size) -> None:
    def gradients(size):
        torch.manual_seed(0)
        keep = KeepGradients()
        module, _, trainer = build(
            tiny_model, {"accumulate_grad_batches": 8 // size}, callbacks=[keep],
            adapter=LoraConfig(r=4, lora_alpha=8, target_modules="attention", init_lora_weights=False),
        )  # fmt: skip
        trainer.fit(module, SameEight(path=str(SAMPLES), val_fraction=0, batch_size=size))
        assert trainer.global_step == 1
        return keep.gradients

    expected, accumulated = gradients(8), gradients(batch_size)
    assert expected.keys() == accumulated.keys() and len(expected) == 16
    for name in expected:
        torch.testing.assert_close(accumulated[name], expected[name], rtol=2e-4, atol=1e-7)


def test_the_gradient_is_that_of_the_mean_over_all_labeled_tokens(tiny_model) -> None:
    torch.manual_seed(0)
    keep = KeepGradients()
    adapter = LoraConfig(r=4, target_modules="attention", init_lora_weights=False)
    module, _, trainer = build(
        tiny_model,
        {"accumulate_grad_batches": 4},
        callbacks=[keep],
        adapter=adapter,
        use_4bit=False,
        learning_rate=1e-9,
    )
    data = SameEight(path=str(SAMPLES), val_fraction=0, batch_size=2)
    trainer.fit(module, data)
    module.zero_grad()
    batches = list(data.train_dataloader())
    total = sum(int((batch.labels[:, 1:] >= 0).sum()) for batch in batches)
    for batch in batches:  # independently: the model's own loss, from full logits, with a mask
        mask = (torch.arange(batch.input_ids.shape[1])[None] < torch.tensor(batch.lengths)[:, None]).long()
        output = module.model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels)
        (output.loss * (batch.labels[:, 1:] >= 0).sum() / total).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(keep.gradients[name], parameter.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_packed_examples_have_the_loss_and_gradient_of_padded_ones(tiny_model, checkpointing) -> None:
    def fitted(packing):
        torch.manual_seed(0)
        keep = KeepGradients()
        module, _, trainer = build(
            tiny_model, callbacks=[keep], gradient_checkpointing=checkpointing,
            adapter=LoraConfig(r=4, target_modules="attention", init_lora_weights=False),
        )  # fmt: skip
        trainer.fit(module, SameEight(path=str(SAMPLES), val_fraction=0, batch_size=8, packing=packing))
        return trainer.callback_metrics["train_loss"], keep.gradients

    (loss, gradients), (packed_loss, packed_gradients) = fitted(False), fitted(True)
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=0)
    assert len(gradients) == 16
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-3, atol=1e-7)


def test_packing_is_rejected_where_documents_would_see_each_other(tiny_model) -> None:
    module, data, trainer = build(
        tiny_model, data_options={"packing": True}, adapter=PromptTuningConfig(num_virtual_tokens=3),
        gradient_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"`data\.packing=false`"):
        trainer.fit(module, data)


class CountLayerCalls(Callback):
    def on_fit_start(self, trainer, pl_module) -> None:
        self.calls = 0
        layer = pl_module.model.get_base_model().model.layers[0].self_attn
        layer.register_forward_hook(lambda *_: setattr(self, "calls", self.calls + 1))


@pytest.mark.parametrize(
    ("checkpointing", "calls"), [(True, 2), ("full", 2), ("selective", 2), ("offload", 2), (False, 1), ("none", 1)]
)
def test_gradient_checkpointing_really_recomputes(tiny_model, checkpointing, calls) -> None:
    count = CountLayerCalls()
    module, data, trainer = build(tiny_model, callbacks=[count], gradient_checkpointing=checkpointing)
    trainer.fit(module, data)
    assert count.calls == calls


def test_every_policy_gives_the_same_gradient_and_selective_computes_attention_once(tiny_model) -> None:
    def fitted(policy):
        torch.manual_seed(0)
        keep = KeepGradients()
        adapter = LoraConfig(r=4, target_modules="attention", init_lora_weights=False)
        module, data, trainer = build(tiny_model, callbacks=[keep], gradient_checkpointing=policy, adapter=adapter)
        with OperatorRecorder() as recorder:  # runs below the policy, and so sees what is really computed
            trainer.fit(module, data)
        num_calls = recorder.names.count("aten::_scaled_dot_product_flash_attention_for_cpu")
        return keep.gradients, num_calls - 1  # the first call was only to name the kernel

    expected, attended = fitted("none")
    assert attended > 0
    for policy, times in (("full", 2), ("selective", 1), ("offload", 2)):
        gradients, count = fitted(policy)
        assert count == times * attended, policy
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-7)


def test_offloading_moves_the_inputs_of_layers(tiny_model, monkeypatch) -> None:
    moved: list[tuple[int, ...]] = []
    original = torch.autograd.graph.save_on_cpu.__init__

    def counting(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        pack = self.pack_hook
        self.pack_hook = lambda tensor: (moved.append(tuple(tensor.shape)), pack(tensor))[1]

    monkeypatch.setattr(torch.autograd.graph.save_on_cpu, "__init__", counting)
    module, data, trainer = build(tiny_model, gradient_checkpointing="offload")
    trainer.fit(module, data)
    assert sum(len(shape) == 3 for shape in moved) >= 2  # (B, T, D), one per layer


def test_training_after_a_validation_has_the_same_gradient(tiny_model) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes would leave the layers in a layout without a backward pass."""

    def gradients(validate_first):
        torch.manual_seed(0)
        keep = KeepGradients()
        module, data, trainer = build(
            tiny_model, callbacks=[keep], adapter=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        )
        if validate_first:

            class Validate(Callback):
                def on_train_start(self, trainer, pl_module) -> None:
                    pl_module.eval()
                    with torch.no_grad():
                        pl_module.summed_loss(next(iter(trainer.datamodule.train_dataloader())))
                    pl_module.train()

            trainer.callbacks.append(Validate())
        trainer.fit(module, data)
        return keep.gradients

    plain, after = gradients(False), gradients(True)
    for name in plain:
        torch.testing.assert_close(after[name], plain[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny_model, value) -> None:
    class Poison(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters() if p.requires_grad}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 1:
                self.names = batch.origins
                pl_module.model.get_output_embeddings().weight.data[0] = value

    poison = Poison()
    module, data, trainer = build(tiny_model, {"accumulate_grad_batches": 2, "max_steps": 5}, callbacks=[poison])
    with pytest.raises(UserError, match="not finite at step 1") as error:
        trainer.fit(module, data)
    assert all(name in str(error.value) for name in poison.names)
    after = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert all(torch.equal(after[name], value) for name, value in poison.before.items())


def test_four_bit_layers_frozen_table_and_fp32_adapter(tiny_model) -> None:
    import bitsandbytes

    module, data, trainer = build(tiny_model)
    trainer.fit(module, data)
    base = module.model.get_base_model()
    linear = [m for n, m in base.named_modules() if n.endswith("_proj.base_layer") or n.endswith("down_proj")]
    assert linear and all(isinstance(m, bitsandbytes.nn.Linear4bit) for m in linear)
    assert all(m.weight.quant_state.nested and m.weight.quant_state.quant_type == "nf4" for m in linear)
    assert not base.get_input_embeddings().weight.requires_grad
    trained = [p for p in module.parameters() if p.requires_grad]
    assert trained and all(p.dtype is torch.float32 for p in trained)


def test_weights_decay_but_norms_and_biases_do_not(tiny_model) -> None:
    module, data, trainer = build(tiny_model, adapter=None, use_4bit=False, weight_decay=0.03)
    trainer.fit(module, data)
    for group in trainer.optimizers[0].param_groups:
        assert group["weight_decay"] == (0.03 if group["params"][0].ndim >= 2 else 0.0)
    norms = [p for n, p in module.named_parameters() if "norm" in n]
    assert {id(p) for p in norms} == {id(p) for p in trainer.optimizers[0].param_groups[1]["params"]}


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=4, use_dora=True, target_modules="attention"),
        LoraConfig(r=4, use_rslora=True, target_modules="attention+mlp"),
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        PromptTuningConfig(num_virtual_tokens=5),
    ],
    ids=lambda config: type(config).__name__,
)
def test_any_peft_method_trains_and_is_loaded_by_plain_peft(tiny_model, tmp_path, adapter) -> None:
    from peft import PeftModel

    from typst_lit.data.prompts import ReportPrompt
    from typst_lit.model.backbones import PretrainedBackbone, keep_differentiable
    from typst_lit.model.saving import save_weights

    module, data, trainer = build(tiny_model, {"max_steps": 3}, adapter=adapter, learning_rate=1e-2)
    trainer.fit(module, data)
    save_weights(module.model, tmp_path / "best", module.tokenizer, ReportPrompt(), "card")
    fresh = PretrainedBackbone().load_model(str(tiny_model), None, False, True, torch.device("cpu"))
    keep_differentiable(fresh)  # so that both compute with the same kernel
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        base = fresh.eval()(ids).logits.clone()
        again = PeftModel.from_pretrained(fresh, str(tmp_path / "best")).eval()(ids).logits
        trained = module.model.eval()(ids).logits
    torch.testing.assert_close(again, trained, rtol=1e-3, atol=1e-4)
    assert again.shape != base.shape or not torch.allclose(again, base, atol=1e-4)


def test_pissa_needs_16_bits_and_is_loaded_as_it_was_saved(tiny_model, tmp_path) -> None:
    from typst_lit.data.prompts import ReportPrompt
    from typst_lit.model.adapters import load_adapter
    from typst_lit.model.backbones import PretrainedBackbone
    from typst_lit.model.saving import save_weights

    adapter = LoraConfig(r=4, init_lora_weights="pissa", target_modules="attention")
    module, data, trainer = build(tiny_model, adapter=adapter)
    with pytest.raises(UserError, match="use_4bit=false"):
        trainer.fit(module, data)
    module, data, trainer = build(tiny_model, {"max_steps": 3}, adapter=adapter, use_4bit=False, learning_rate=1e-2)
    trainer.fit(module, data)
    save_weights(module.model, tmp_path / "best", module.tokenizer, ReportPrompt(), "card")
    fresh = PretrainedBackbone().load_model(str(tiny_model), None, False, False, torch.device("cpu"))
    loaded = load_adapter(fresh, tmp_path / "best", trainable=False)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, module.model.eval()(ids).logits, rtol=1e-3, atol=1e-4)


def test_target_modules_that_match_nothing_list_the_linear_layers(tiny_model) -> None:
    module, data, trainer = build(tiny_model, adapter=LoraConfig(target_modules=["q_proj", "c_attn"]))
    with pytest.raises(UserError, match=r"called c_attn.*down_proj.*q_proj"):
        trainer.fit(module, data)


def test_the_default_adapter_is_not_written_into(tiny_model) -> None:
    module, data, trainer = build(tiny_model)
    trainer.fit(module, data)
    assert TypstModule(str(tiny_model)).adapter.target_modules == module.adapter.target_modules == "attention"
    assert len(module.adapter.target_modules) == len("attention")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"learning_rate": 0.0}, "learning_rate"), ({"weight_decay": -1.0}, "weight_decay"), ({"adapter": None}, "4-bit")],
)
def test_invalid_settings_are_rejected(options, message) -> None:
    with pytest.raises(UserError, match=message):
        TypstModule("x", **options)


def test_prefix_tuning_is_trained_or_rejected_but_never_ignored(tiny_model) -> None:
    module, data, trainer = build(tiny_model, adapter=PrefixTuningConfig(num_virtual_tokens=4), learning_rate=1e-2)
    with pytest.raises(UserError, match="gradient_checkpointing=false"):
        trainer.fit(module, data)
    keep = KeepGradients()
    module, data, trainer = build(
        tiny_model, callbacks=[keep], adapter=PrefixTuningConfig(num_virtual_tokens=4), gradient_checkpointing=False
    )
    trainer.fit(module, data)
    assert keep.gradients and all(gradient.any() for gradient in keep.gradients.values())
