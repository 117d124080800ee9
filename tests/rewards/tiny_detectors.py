"""Tiny random object detectors in transformers format: one of fixed classes, two that look for words."""

import json

import torch
from reward_models import CONTEXT, VOCABULARY, WORDS, tokenizer_files
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
)

CLASSES = ["cat", "dog", "mouse"]
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def class_detector(path):
    """Write a YOLOS that knows cats, dogs and mice."""
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    config = YolosConfig(
        **_SMALL, image_size=[32, 32], patch_size=8, num_detection_tokens=5, id2label=names, initializer_range=0.5,
        label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(path)
    processor = {"image_processor_type": "YolosImageProcessor", "do_resize": False, "do_pad": False}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def owl(path):
    """Write an OWLv2 that reads single letters."""
    torch.manual_seed(0)
    text = {**_SMALL, "vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(path)
    tokenizer_files(path)
    processor = {
        "image_processor_type": "Owlv2ImageProcessor", "processor_class": "Owlv2Processor", "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def dino(path):
    """Write a Grounding DINO that knows a few words."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = BertConfig(vocab_size=len(WORDS) + 1, **_SMALL, max_position_embeddings=40)
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6, num_feature_levels=4, max_text_len=40,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join([*WORDS, "."]) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 40}))
    processor = {
        "image_processor_type": "GroundingDinoImageProcessor", "processor_class": "GroundingDinoProcessor",
        "size": {"shortest_edge": 128, "longest_edge": 128},
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path
