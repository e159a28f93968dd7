"""Private API of Liger, as read in 0.8.2."""

from __future__ import annotations

from transformers import PreTrainedModel


def use_liger_kernels(model: PreTrainedModel) -> bool:
    """Puts Liger's kernels, except those for the loss, into a loaded model; returns whether it has any for it.

    Liger's public functions patch transformers' classes, before a model is loaded, and so every other model too.

    Raises:
        ImportError: when Liger, or Triton, is not installed.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
    return True
