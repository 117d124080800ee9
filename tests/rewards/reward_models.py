"""Tiny random models in the folders' formats that rewards read, and CLIP written out once more to check them by.

The weights carry open_clip's names; `folder` translates them, so that both formats hold the same model.
"""

import json
import string

import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from rlcm.rewards.learned.open_clip import from_open_clip

SIDE, PATCH, WIDTH, HEADS, LAYERS, DIM, CONTEXT = 32, 8, 32, 2, 2, 24, 16
LETTERS = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
VOCABULARY = {token: index for index, token in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "image", "contains", "a", "cat", "dog", "on", "mat", "red"]


def clip_state(seed=0):
    """Return the tensors of a random CLIP under open_clip's names."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=0.2):
        return torch.randn(*shape, generator=generator) * scale

    state = {
        "visual.class_embedding": random(WIDTH),
        "visual.conv1.weight": random(WIDTH, 3, PATCH, PATCH),
        "visual.positional_embedding": random((SIDE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": random(WIDTH, DIM),
        "token_embedding.weight": random(len(VOCABULARY), WIDTH),
        "positional_embedding": random(CONTEXT, WIDTH),
        "text_projection": random(WIDTH, DIM),
        "logit_scale": torch.tensor(3.0),
    }
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        state |= {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}
    for tower in ("visual.", ""):
        for layer in range(LAYERS):
            block = f"{tower}transformer.resblocks.{layer}"
            state |= {f"{block}.attn.in_proj_weight": random(3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": random(3 * WIDTH)}
            for name, (rows, columns) in {
                "attn.out_proj": (WIDTH, WIDTH), "mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH)
            }.items():  # fmt: skip
                state |= {f"{block}.{name}.weight": random(rows, columns), f"{block}.{name}.bias": random(rows)}
            for name in ("ln_1", "ln_2"):
                state |= {f"{block}.{name}.weight": 1 + random(WIDTH), f"{block}.{name}.bias": random(WIDTH)}
    return state


def _norm(state, name, x):
    return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _blocks(state, prefix, x, causal):
    batch, length, _ = x.shape
    for layer in range(LAYERS):
        block = f"{prefix}transformer.resblocks.{layer}"
        y = _norm(state, f"{block}.ln_1", x)
        qkv = y @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
        logits = q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        if causal:
            logits = logits + torch.full((length, length), -torch.inf).triu(1)
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + _linear(state, f"{block}.attn.out_proj", y)
        x = x + _linear(
            state, f"{block}.mlp.c_proj", F.gelu(_linear(state, f"{block}.mlp.c_fc", _norm(state, f"{block}.ln_2", x)))
        )
    return x


def image_embedding(state, pixels):
    """Return unit vectors [B, DIM] of pixel values [B, 3, SIDE, SIDE]."""
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, WIDTH), x], 1) + state["visual.positional_embedding"]
    x = _blocks(state, "visual.", _norm(state, "visual.ln_pre", x), causal=False)
    return F.normalize(_norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"], dim=-1)


def text_embedding(state, texts):
    """Return unit vectors [B, DIM] of texts of lower-case words."""
    rows = []
    for text in texts:
        letters = [letter + ("</w>" if i == len(word) - 1 else "") for word in text.split() for i, letter in enumerate(word)]
        tokens = ["<|startoftext|>", *letters[: CONTEXT - 2], "<|endoftext|>"]
        ids = torch.tensor([VOCABULARY[token] for token in tokens])
        x = (state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)])[None]
        x = _norm(state, "ln_final", _blocks(state, "", x, causal=True))
        rows.append(x[0, -1] @ state["text_projection"])
    return F.normalize(torch.stack(rows), dim=-1)


def tokenizer_files(path):
    """Write CLIP's tokenizer for single letters."""
    (path / "vocab.json").write_text(json.dumps(VOCABULARY))
    (path / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")}
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, **special})
    )


def clip_config():
    """Return the configuration of the tiny CLIP; eos_token_id=2 as in the published configurations."""
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "projection_dim": DIM, "hidden_act": "gelu",
    }  # fmt: skip
    text = {"vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 2}
    vision = {"image_size": SIDE, "patch_size": PATCH}
    return CLIPConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=DIM)


def clip_folder(path, seed=0):
    """Write a CLIP in transformers format; return its tensors under open_clip's names."""
    state = clip_state(seed)
    model = CLIPModel(clip_config())
    model.load_state_dict(from_open_clip(state), strict=False)
    model.save_pretrained(path)
    tokenizer_files(path)
    return state


def bert_folder(path):
    """Write a random BERT encoder with a vocabulary of a few words."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 40}))
