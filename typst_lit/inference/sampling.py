"""How documents are sampled: the step from logits to the next tokens."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from typst_lit.errors import UserError
from typst_lit.inference.settings import GenerationSettings

MAX_TRIED = 1024  # of the likeliest tokens, where the first ones and those that are suggested must not follow
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
    """The sampling state of one document; `choose_tokens` chooses the tokens of all documents of a batch.

    The random number of each token is a function of the seed and the token's position. So a document depends neither
    on the others in its batch nor on how many tokens are chosen in one step.

    Args:
        settings: how to sample.
        seed: entropy of the random numbers.
        copied: token ids that the repetition penalty spares, since the document copies a text that has them.
    """

    def __init__(self, settings: GenerationSettings, seed: int | Sequence[int], copied: Sequence[int] = ()) -> None:
        self.settings = settings
        self.copied = np.unique(np.asarray(copied, np.int64))
        self._seed = seed
        self._generator = np.random.default_rng(seed)
        self._uniform = np.empty(0)  # drawn when they are needed: max_tokens may be any number
        self._tokens = array("q")  # of the document so far; int64, which NumPy reads without a copy

    def uniform(self, count: int) -> np.ndarray:
        """Returns the random numbers of the next positions, (count,)."""
        start = len(self._tokens)
        while len(self._uniform) < start + count:
            self._uniform = np.concatenate([self._uniform, self._generator.random(UNIFORM_BLOCK_SIZE)])
        return self._uniform[start : start + count]

    def accept(self, tokens: Sequence[int]) -> None:
        """Records the tokens that became part of the document."""
        self._tokens.extend(tokens)

    def truncate(self, num_tokens: int) -> None:
        """Restores the state that the document had after its first `num_tokens` tokens."""
        del self._tokens[num_tokens:]

    def token_ids(self) -> np.ndarray:
        """Returns the tokens that were accepted."""
        return np.array(self._tokens)

    def choose_allowed(
        self,
        logits: Tensor,
        draft: Sequence[int],
        is_allowed: Callable[[int], bool],
        suggested: Callable[[], Sequence[int]] = tuple,
    ) -> int | None:
        """Chooses the next token after a draft among those that are allowed, after one was chosen that is not.

        Args:
            logits: (V,), the scores after the draft.
            draft: token ids that follow those that were accepted.
            is_allowed: whether a token may be chosen; not called again after a token that may.
            suggested: returns tokens that are likely to be allowed, for where few of all are.

        Returns:
            A token id; None when none is allowed.
        """
        settings = self.settings
        if settings.repetition_penalty > 1:
            seen = torch.zeros_like(logits, dtype=torch.bool)
            seen[np.concatenate([self.token_ids(), np.asarray(draft, np.int64)])] = True
            seen[self.copied] = False
            logits = penalize(logits, seen, settings.repetition_penalty)
        if not settings.is_greedy:
            candidates, probabilities = top_candidates(
                logits[None], settings.temperature, settings.top_k, settings.top_p
            )
            cumulative = probabilities[0].double().cumsum(-1).cpu().numpy()
            generator = np.random.default_rng([*np.atleast_1d(self._seed), len(self._tokens) + len(draft)])
            numbers = generator.random(MAX_REDRAWS) * cumulative[-1]
            for index in np.minimum(np.searchsorted(cumulative, numbers, "right"), len(cumulative) - 1):
                if is_allowed(token := int(candidates[0, index])):
                    return token
        for token in self._likeliest(logits, suggested):
            if is_allowed(token):
                return token
        return None

    @staticmethod
    def _likeliest(logits: Tensor, suggested: Callable[[], Sequence[int]]) -> Iterator[int]:
        yield from logits.topk(min(MAX_REDRAWS, len(logits))).indices.tolist()  # mostly, one of the first is allowed
        ids = torch.tensor([token for token in suggested() if token < len(logits)], dtype=torch.long)
        yield from ids[logits.cpu()[ids].argsort(descending=True)].tolist()
        yield from logits.topk(min(MAX_TRIED, len(logits))).indices.tolist()


def choose_tokens(logits: Tensor, samplers: Sequence[Sampler], drafts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Chooses the next token after each prefix of each document's draft, in a few tensor operations for the batch.

    Args:
        logits: (B, W, V), the scores after none, one, two, ... tokens of each draft; those after more are ignored.
        samplers: those of the B documents.
        drafts: their drafts, of at most W - 1 token ids.

    Returns:
        The tokens of each document, one more than its draft has. The one at position i is what would be chosen if the
        draft's first i tokens were right. It is `INVALID_TOKEN` where a score is NaN or infinite: an invalid index in
        a kernel would make a GPU unusable for the process.

    Example:
        >>> logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]])
        >>> choose_tokens(logits, [Sampler(GenerationSettings(temperature=0), seed=0)], drafts=[[1]])
        [[1, 0]]
    """
    counts = [len(draft) + 1 for draft in drafts]
    batch_settings = [sampler.settings for sampler in samplers]
    if all(settings.is_greedy and settings.repetition_penalty == 1 for settings in batch_settings):
        tokens = logits.argmax(-1)  # of NaN if there is any
        is_valid = logits.gather(-1, tokens[..., None])[..., 0].isfinite()
        rows: list[list[int]] = torch.where(is_valid, tokens, INVALID_TOKEN).tolist()
        return [row[:count] for row, count in zip(rows, counts, strict=True)]
    width = logits.shape[1]
    scores = logits.flatten(0, 1)
    if sum(counts) < len(scores):
        positions = [row * width + np.arange(count) for row, count in enumerate(counts)]
        scores = scores.index_select(0, _upload(np.concatenate(positions), scores.device))
    is_valid = scores.amax(-1).isfinite()  # NaN if any is
    if any(settings.repetition_penalty > 1 for settings in batch_settings):
        penalties = np.repeat([settings.repetition_penalty for settings in batch_settings], counts)
        seen = _seen_tokens(samplers, drafts, scores)
        scores = penalize(scores, seen, _upload(penalties.astype(np.float32), scores.device)[:, None])
    tokens = torch.where(is_valid, _sample(scores, samplers, counts), INVALID_TOKEN)  # (T,)
    chosen = iter(tokens.tolist())  # the only synchronization
    return [list(islice(chosen, count)) for count in counts]


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor | float) -> Tensor:
    """Divides the positive scores of tokens that were generated before, and multiplies the negative ones.

    Args:
        logits: (..., V)
        seen: (..., V), which tokens were generated before.
        penalty: (..., 1) or one for all.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty).to(logits.dtype)
    return torch.where(seen, penalized, logits)


def top_candidates(
    logits: Tensor, temperature: Tensor | float, top_k: int, top_p: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Returns the tokens that may be sampled and their probabilities, the most likely first.

    Applies temperature, then top-k, then top-p, in the order of transformers.

    Args:
        logits: (T, V)
        temperature: above 0; (T, 1) or one for all.
        top_k: as in `GenerationSettings`.
        top_p: (T, 1) or one for all.

    Returns:
        Token ids and probabilities, both (T, K); those beyond top-p have probability 0.
    """
    logits = logits.float()
    scores = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0: none overflows to infinity
    count = min(top_k or scores.shape[-1], scores.shape[-1])
    top_scores, candidates = scores.topk(count, -1)
    probabilities = top_scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    is_in_top_p = before < top_p
    is_in_top_p[..., 0] = True  # a top_p below the smallest fp32 number is 0 in the comparison
    probabilities = probabilities * is_in_top_p
    return candidates, probabilities / probabilities.sum(-1, keepdim=True)


def _sample(logits: Tensor, samplers: Sequence[Sampler], counts: Sequence[int]) -> Tensor:
    """Returns a token for each position, (T,), from its logits, (T, V), by its document's settings."""
    top_k = np.repeat(
        [-1 if s.settings.is_greedy else min(s.settings.top_k, logits.shape[-1]) for s in samplers], counts
    )
    groups = sorted(set(top_k.tolist()))
    if groups == [-1]:
        return logits.argmax(-1)
    parameters = np.empty((3, len(logits)), np.float32)
    parameters[0] = np.repeat([s.settings.temperature for s in samplers], counts)
    parameters[1] = np.repeat([s.settings.top_p for s in samplers], counts)
    parameters[2] = np.concatenate([s.uniform(count) for s, count in zip(samplers, counts, strict=True)])
    temperature, top_p, uniform = _upload(parameters, logits.device)[..., None]
    if len(groups) == 1:
        return _draw(*top_candidates(logits, temperature, groups[0], top_p), uniform)
    # Not padded to the largest top_k: the order of a sum, and so a document, would depend on the others in the batch.
    tokens = logits.argmax(-1)
    for k in groups:
        if k >= 0:
            index = _upload(np.flatnonzero(top_k == k), logits.device)
            candidates = top_candidates(logits[index], temperature[index], k, top_p[index])
            tokens[index] = _draw(*candidates, uniform[index])
    return tokens


def _draw(candidates: Tensor, probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Returns the candidates that random numbers, (T, 1), select, (T,)."""
    cumulative = probabilities.cumsum(-1)
    # Rounding can leave the last sum a little under 1, and the number drawn above it.
    indices = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    return candidates.gather(-1, torch.minimum(indices, last).clamp(min=0))[:, 0]


def _seen_tokens(samplers: Sequence[Sampler], drafts: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Returns which tokens are in the document before each position, (T, V), those of its draft included.

    Those that a repetition penalty spares do not count.
    """
    vocabulary_size = logits.shape[-1]
    accepted, drafted, copied = [], [], []  # indices into the flattened masks
    start = 0
    for row, (sampler, draft) in enumerate(zip(samplers, drafts, strict=True)):
        accepted.append(row * vocabulary_size + sampler.token_ids())
        position, earlier = np.tril_indices(len(draft))
        drafted.append((start + position + 1) * vocabulary_size + np.asarray(draft, np.int64)[earlier])
        positions = np.arange(start, start + len(draft) + 1)
        copied.append((positions[:, None] * vocabulary_size + sampler.copied).ravel())
        start += len(draft) + 1
    seen = torch.zeros(len(samplers), vocabulary_size, dtype=torch.bool, device=logits.device)
    seen.view(-1).index_fill_(0, _upload(np.concatenate(accepted), logits.device), True)
    rows = np.repeat(np.arange(len(drafts)), [len(draft) + 1 for draft in drafts])
    seen = seen.index_select(0, _upload(rows, logits.device))
    seen.view(-1).index_fill_(0, _upload(np.concatenate(drafted), logits.device), True)
    seen.view(-1).index_fill_(0, _upload(np.concatenate(copied), logits.device), False)
    return seen


def _upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Copies an array to a device, without waiting for the kernels that run there."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
