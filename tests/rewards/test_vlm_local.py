"""Vision-language rewards by a tiny local model."""

import pytest
import torch
from PIL import Image

from rlcm.rewards.learned.hub import Source
from rlcm.rewards.vlm import VlmSettings, VlmYes
from rlcm.rewards.vlm.local import LocalVlm


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A tiny random LLaVA with a vocabulary of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "yes", "Yes", "no", "No", "cat", "dog", "show", "a", "?", "user", ":"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    template = (
        "{% for m in messages %}{{ m.role }} : {% for c in m.content %}"
        "{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=template, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**size, image_size=16, patch_size=8),
            text_config=LlamaConfig(**size, vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2),
            image_token_index=words.index("<image>"),
        )
    )
    path = tmp_path_factory.mktemp("llava")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def local(path, **changes):
    return {"model": str(path), "dtype": "float32", "device": "cpu", "max_tokens": 3, **changes}


def test_a_local_model_answers_and_batches_agree(llava, images):
    questions = ["show a cat ?", "a dog ?", "show a cat ?", "a ?", "cat"]
    one, many = (
        LocalVlm(Source(str(llava)), VlmSettings(**local(llava, batch_size=size)))(images, questions) for size in (1, 5)
    )
    for first, second in zip(one, many, strict=True):
        assert first.text == second.text
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)
        assert 0 < first.probabilities["yes"] + first.probabilities["no"] < 1


def test_the_local_yes_is_that_of_the_logits(llava, images):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    prompts = ["a cat", "a dog", "a", "cat", "dog"]
    scores = VlmYes(**local(llava), question="show {prompt} ?")(images, prompts)
    processor, model = AutoProcessor.from_pretrained(llava), AutoModelForImageTextToText.from_pretrained(llava).eval()
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        picture = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        inputs = processor(images=picture, text=f"user : <image> show {prompt} ?", return_tensors="pt")
        with torch.no_grad():
            p = model(**inputs).logits[0, -1].softmax(-1)
        yes, no = (
            sum(p[processor.tokenizer.convert_tokens_to_ids(w)] for w in pair) for pair in (("yes", "Yes"), ("no", "No"))
        )
        assert score.item() == pytest.approx((yes / (yes + no)).item(), abs=1e-5)
