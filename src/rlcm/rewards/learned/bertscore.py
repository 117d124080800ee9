"""BERTScore on a transformers encoder: how much of a reference sentence a candidate sentence says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from rlcm.errors import MissingFileError
from rlcm.rewards.learned.clip import Network, load_tokenizer
from rlcm.rewards.learned.hub import MODEL_FILES, Source
from rlcm.runs.weights import load_whole

ENCODER = Source(
    "microsoft/deberta-xlarge-mnli", "5b07a9086c1dbb79981ff7b05b4d1ad83b3af51c", (*MODEL_FILES, "pytorch_model.bin")
)
UNUSED = ("pooler.",)
"""What encoders have after their layers, and some are published without."""
ENCODER_LAYER = 40
"""The layer that agrees best with people's judgements, as the authors of BERTScore recommend."""


def greedy_recall(reference: Tensor, candidate: Tensor, counted: Tensor, there: Tensor) -> Tensor:
    """Return the recall [B] of reference tokens in candidates.

        R = mean over counted reference tokens i of  max over candidate tokens j of  cos(reference_i, candidate_j)

    Zhang et al. 2020, "BERTScore" (arXiv:1904.09675), section 3, without idf weights.

    Args:
        reference: [B, R, D] token vectors.
        candidate: [B, C, D] token vectors.
        counted: [B, R] bool: tokens of the reference to average over, at least one a row.
        there: [B, C] bool: tokens of the candidate that are not padding, at least one a row.
    """
    cosines = F.normalize(reference, dim=-1) @ F.normalize(candidate, dim=-1).transpose(1, 2)
    best = cosines.masked_fill(~there[:, None, :], -torch.inf).amax(2)
    return (best * counted).sum(1) / counted.sum(1)


class BertRecall:
    """BERTScore recall of references in candidates; special tokens can be matched but are not counted, as in the original.

    Args:
        path: folder of a transformers encoder and its tokenizer.
        layer: whose outputs are the token vectors; 0 = the embeddings.
        network: batch size, dtype and device.

    Raises:
        MissingFileError: if the folder holds no such model.
        WeightsError: if weights are damaged or missing.
        ValueError: if the encoder has no such layer.
    """

    def __init__(self, path: Path, layer: int, network: Network) -> None:
        self.tokenizer = load_tokenizer(path)
        try:
            self.model = load_whole(AutoModel, path, spare=UNUSED).requires_grad_(False).eval()
        except (OSError, ValueError, KeyError) as error:
            raise MissingFileError(f"{path} holds no encoder in transformers format ({error}).") from error
        self.model.to(network.torch_device, network.torch_dtype)
        layers = self.model.config.num_hidden_layers
        if not 0 <= layer <= layers:
            raise ValueError(f"layer={layer} is not in 0 .. {layers}, the layers of {path}.")
        self.layer, self.network = layer, network

    @torch.no_grad()
    def __call__(self, references: Sequence[str], candidates: Sequence[str]) -> Tensor:
        """Return the recalls [B] on the CPU, in [-1, 1].

        Raises:
            ValueError: if the numbers differ or a reference has no token of its own.
        """
        if len(references) != len(candidates):
            raise ValueError(f"{len(references)} references do not fit {len(candidates)} candidates.")
        rows = []
        for start in range(0, len(references), self.network.batch_size):
            part = slice(start, start + self.network.batch_size)
            reference, counted, _ = self._encode(references[part])
            candidate, _, there = self._encode(candidates[part])
            if not counted.any(1).all():
                raise ValueError("a reference text is empty, so nothing of it can be recalled.")
            rows.append(greedy_recall(reference, candidate, counted, there).cpu())
        return torch.cat(rows)

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return token vectors [B, L, D] fp32, which are words [B, L], and which are no padding [B, L]."""
        longest = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512))
        tokens: Any = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_special_tokens_mask=True, return_tensors="pt"
        ).to(self.network.torch_device)
        special = tokens.pop("special_tokens_mask").bool()
        hidden = self.model(**tokens, output_hidden_states=True).hidden_states[self.layer]
        there = tokens["attention_mask"].bool()
        return hidden.float(), there & ~special, there
