"""BERTScore recall by hand, and on a tiny encoder against loops over single sentences."""

import pytest
import torch
from reward_models import bert_folder
from transformers import AutoModel, AutoTokenizer

from rlcm.errors import MissingFileError
from rlcm.rewards.learned.bertscore import BertRecall, greedy_recall
from rlcm.rewards.learned.clip import Network

REFERENCES = ["the image contains a cat", "a red dog on the mat", "the image contains a cat"]
CANDIDATES = ["a cat on a mat", "the image contains a dog", ""]


def test_recall_by_hand():
    # Cosines with (1,1), (0,-1), (3,0): (1,0) -> .7071, 0, 1 -> best 1;  (0,2) -> .7071, -1, 0 -> best .7071. Mean .8536.
    reference = torch.tensor([[[1.0, 0], [0, 2]]])
    candidate = torch.tensor([[[1.0, 1], [0, -1], [3, 0]]])
    counted, there = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    assert greedy_recall(reference, candidate, counted, there).item() == pytest.approx((1 + 0.5**0.5) / 2)
    # The third candidate token is padding: best .7071 twice.
    there[0, 2] = False
    assert greedy_recall(reference, candidate, counted, there).item() == pytest.approx(0.5**0.5)
    # Only the second reference token counts.
    counted[0, 0] = False
    assert greedy_recall(reference, candidate, counted, there).item() == pytest.approx(0.5**0.5)
    # All cosines negative: padding, whose cosine is 0, must not win.
    opposite = torch.tensor([[[0.0, -1], [-1, -1], [0, 0]]])
    assert greedy_recall(reference, opposite, counted, there).item() == pytest.approx(-(0.5**0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    bert_folder(path)
    return path


def by_loops(folder, layer, reference, candidate):
    """One pair, unpadded, special tokens dropped from the mean by their place."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def vectors(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]

    best = [
        max(torch.cosine_similarity(token, other, dim=0).item() for other in vectors(candidate))
        for token in vectors(reference)[1:-1]
    ]
    return sum(best) / len(best)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_recall_of_texts(folder, layer):
    recall = BertRecall(folder, layer, Network(2, "float32", "cpu"))(REFERENCES, CANDIDATES)
    expected = [by_loops(folder, layer, *pair) for pair in zip(REFERENCES, CANDIDATES, strict=True)]
    torch.testing.assert_close(recall, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_text_recalls_itself(folder):
    recall = BertRecall(folder, 2, Network(8, "float32", "cpu"))
    torch.testing.assert_close(recall(REFERENCES, REFERENCES), torch.ones(3))


def test_batch_size_changes_nothing(folder):
    one, all_ = (BertRecall(folder, 2, Network(size, "float32", "cpu"))(REFERENCES, CANDIDATES) for size in (1, 3))
    torch.testing.assert_close(one, all_, rtol=1e-5, atol=1e-5)


def test_long_answers_are_cut(folder):
    recall = BertRecall(folder, 2, Network(8, "float32", "cpu"))(["a cat"], ["the mat " * 200])
    assert recall.isfinite().all()


def test_mistakes(folder, tmp_path):
    recall = BertRecall(folder, 2, Network(8, "float32", "cpu"))
    with pytest.raises(ValueError, match="1 references do not fit 2"):
        recall(["a"], ["a", "cat"])
    with pytest.raises(ValueError, match="empty"):
        recall([""], ["cat"])
    with pytest.raises(ValueError, match=r"layer=4 is not in 0 \.\. 3"):
        BertRecall(folder, 4, Network(8, "float32", "cpu"))
    with pytest.raises(MissingFileError, match="holds no"):
        BertRecall(tmp_path, 2, Network(8, "float32", "cpu"))
