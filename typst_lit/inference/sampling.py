"""How documents are sampled: the step from logits to the next tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from typst_lit.errors import UserError
from typst_lit.inference.settings import GenerationSettings

MAX_REDRAWS = 64  # of a token that may follow; then the most likely one is taken
UNIFORM_BLOCK_SIZE = 1024  # random numbers that are drawn together
INVALID_TOKEN = -1  # where no token can be chosen, because the model's scores are not finite


class InvalidScoresError(UserError):
    """A model's scores are not finite."""

    def __init__(self) -> None:
        super().__init__(
            "the model's scores are not finite.",
            hint="Its weights or the adapter's are damaged, or too large for the precision. Use another checkpoint.",
        )


def document_seed(seed: int, prompt: Sequence[int], attempt: int = 0) -> list[int]:
    """Returns the entropy of a document's random numbers: seed, prompt and attempt, not its position in a batch."""
    return [seed, attempt, zlib.crc32(np.asarray(prompt, dtype=np.int64).tobytes())]


class Sampler:
    """Chooses the tokens of one document.

    The random number of each token is a function of the seed and the token's position. So a document depends neither
    on the others in its batch nor on how many tokens are chosen in one step.

    Args:
        settings: how to sample.
        seed: entropy of the random numbers.
    """

    def __init__(self, settings: GenerationSettings, seed: int | Sequence[int]) -> None:
        self.settings = settings
        self._seed = seed
        self._generator = np.random.default_rng(seed)
        self._uniform = np.empty(0)  # drawn when they are needed: max_tokens may be any number
        self._num_chosen = 0
        self._seen: Tensor | None = None  # (V,), which tokens the document already has

    def choose(self, logits: Tensor, draft: Sequence[int]) -> Tensor:
        """Chooses the next token after each prefix of a draft.

        Args:
            logits: (T, V), the scores after none, one, two, ... tokens of the draft.
            draft: T - 1 token ids.

        Returns:
            (T,), token ids. The one at position i is what would be chosen if the draft's first i tokens were right. It
            is `INVALID_TOKEN` where a score is NaN or infinite: an invalid index in a kernel would make a GPU unusable
            for the process.
        """
        is_valid = logits.amax(-1).isfinite()  # NaN if any is
        if self.settings.repetition_penalty > 1:
            logits = self._penalize(logits, draft)
        tokens = logits.argmax(-1) if self.settings.is_greedy else self._sample(logits)
        return torch.where(is_valid, tokens, INVALID_TOKEN)

    def _sample(self, logits: Tensor) -> Tensor:
        candidates, probabilities = top_candidates(logits, self.settings)
        cumulative = probabilities.cumsum(-1)
        uniform = torch.from_numpy(self._next_uniform(len(logits))).to(cumulative)
        # Rounding can leave the last sum a little under 1, and the number drawn above it.
        indices = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
        last = (probabilities > 0).sum(-1, keepdim=True) - 1
        return candidates.gather(-1, torch.minimum(indices, last).clamp(min=0))[:, 0]

    def _next_uniform(self, count: int) -> np.ndarray:
        """Returns the random numbers of the next positions, (count,)."""
        end = self._num_chosen + count
        while len(self._uniform) < end:
            self._uniform = np.concatenate([self._uniform, self._generator.random(UNIFORM_BLOCK_SIZE)])
        return self._uniform[self._num_chosen : end]

    def choose_allowed(self, logits: Tensor, draft: Sequence[int], is_allowed: Callable[[int], bool]) -> int | None:
        """Chooses the next token after a draft among those that are allowed, after `choose` chose one that is not.

        Args:
            logits: (V,), the scores after the draft.
            draft: token ids that follow those that were accepted.
            is_allowed: whether a token may be chosen; not called again after a token that may.

        Returns:
            A token id; None when none is allowed.
        """
        if self.settings.repetition_penalty > 1:
            logits = self._penalize(logits.expand(len(draft) + 1, -1), draft)[-1]
        if not self.settings.is_greedy:
            candidates, probabilities = top_candidates(logits[None], self.settings)
            cumulative = probabilities[0].double().cumsum(-1).cpu().numpy()
            generator = np.random.default_rng([*np.atleast_1d(self._seed), self._num_chosen + len(draft)])
            numbers = generator.random(MAX_REDRAWS) * cumulative[-1]
            for index in np.minimum(np.searchsorted(cumulative, numbers, "right"), len(cumulative) - 1):
                if is_allowed(token := int(candidates[0, index])):
                    return token
        for count in (MAX_REDRAWS, len(logits)):  # mostly, one of the first is allowed
            for token in logits.topk(min(count, len(logits))).indices.tolist():
                if is_allowed(token):
                    return int(token)
        return None

    def accept(self, tokens: Sequence[int]) -> None:
        """Records the tokens that became part of the document."""
        self._num_chosen += len(tokens)
        if self._seen is not None:
            self._seen[list(tokens)] = True

    def _penalize(self, logits: Tensor, draft: Sequence[int]) -> Tensor:
        """Divides the positive scores of all tokens that were generated before, and multiplies the negative ones."""
        penalty = self.settings.repetition_penalty
        if self._seen is None:
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        seen = self._seen.expand(logits.shape).clone()
        if draft:
            positions, earlier = torch.tril_indices(len(draft), len(draft), device=logits.device)
            seen[positions + 1, torch.tensor(draft, device=logits.device)[earlier]] = True
        return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_candidates(logits: Tensor, settings: GenerationSettings) -> tuple[Tensor, Tensor]:
    """Returns the tokens that may be sampled and their probabilities, the most likely first.

    Applies temperature, then top-k, then top-p, in the order of transformers.

    Args:
        logits: (T, V)
        settings: not greedy ones.

    Returns:
        Token ids and probabilities, both (T, K); those beyond top-p have probability 0.
    """
    logits = logits.float()
    scores = (logits - logits.amax(-1, keepdim=True)) / settings.temperature  # at most 0: none overflows to infinity
    count = min(settings.top_k or scores.shape[-1], scores.shape[-1])
    top_scores, candidates = scores.topk(count, -1)
    probabilities = top_scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    is_in_top_p = before < settings.top_p
    is_in_top_p[..., 0] = True  # a top_p below the smallest fp32 number is 0 in the comparison
    probabilities = probabilities * is_in_top_p
    return candidates, probabilities / probabilities.sum(-1, keepdim=True)
