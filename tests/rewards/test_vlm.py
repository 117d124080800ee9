"""Vision-language rewards by an endpoint that is scripted here."""

import base64
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from reward_models import bert_folder

from rlcm.errors import ConfigError, RewardError
from rlcm.rewards import RewardMix, RewardPart, RewardSettings, build_rewards
from rlcm.rewards.learned.bertscore import BertRecall
from rlcm.rewards.learned.clip import Network
from rlcm.rewards.served.wire import WireError
from rlcm.rewards.vlm import VlmAlignment, VlmRating, VlmYes
from rlcm.rewards.vlm.answers import read_completion


class Endpoint:
    """Answers chat completions by a function of (picture, question) -> (text, {token: probability}) or a status."""

    def __init__(self, reply):
        self.requests, self.keys = [], []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(request)
                endpoint.keys.append(self.headers.get("Authorization"))
                image, text = request["messages"][0]["content"]
                data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
                found = reply(np.asarray(Image.open(io.BytesIO(data))), text["text"])
                status, body = (found, b"{}") if isinstance(found, int) else (200, completion(*found))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def completion(text, probabilities=None):
    top = [{"token": token, "logprob": math.log(p)} for token, p in (probabilities or {}).items()]
    logprobs = {"content": [{"token": "", "logprob": 0, "top_logprobs": top}]} if top else None
    return json.dumps({"choices": [{"message": {"content": text}, "logprobs": logprobs}]}).encode()


@pytest.fixture
def endpoint():
    made = []

    def make(reply):
        made.append(Endpoint(reply))
        return made[-1]

    yield make
    for found in made:
        found.server.shutdown()
        found.server.server_close()


def asked(found, **changes):
    return {"model": "seer", "endpoint": found.url, "retries": 1, "backoff": 0.01, **changes}


def test_yes_is_the_share_of_yes(endpoint, images, prompts):
    found = endpoint(lambda picture, text: ("Yes", {"Yes": 0.4, " yes": 0.2, "No": 0.2, "Perhaps": 0.1}))
    scores = VlmYes(**asked(found))(images, prompts)
    torch.testing.assert_close(scores, torch.full((5,), 0.6 / 0.8))
    questions = {request["messages"][0]["content"][1]["text"] for request in found.requests}
    assert questions == {f"Does this picture show the following: {prompt}? Answer yes or no." for prompt in prompts}
    assert found.requests[0]["temperature"] == 0
    assert found.requests[0]["model"] == "seer"


def test_each_picture_gets_its_own_answer(endpoint, images, prompts):
    found = endpoint(lambda picture, text: (f"I give it {picture.mean() / 25.5:.3f} points of 10.", None))
    scores = VlmRating(**asked(found, parallel=3), lowest=0)(images, prompts)
    torch.testing.assert_close(scores, 10 * images.mean((1, 2, 3)), rtol=0, atol=0.02)


@pytest.mark.parametrize("text", ["I cannot say.", "11", "0", "-3"])
def test_answers_without_a_rating_are_no_score(endpoint, images, prompts, text):
    found = endpoint(lambda picture, question: (text if "red fox" in question else "7", None))
    reward = VlmRating(**asked(found))
    with pytest.raises(RewardError, match="nan for image 2"):
        RewardMix([("vlm", reward)])(images, prompts)
    scores = RewardMix([RewardPart("vlm", reward, 1.0, False, "skip")])(images, prompts)
    assert scores.valid.tolist() == [True, True, False, True, True]
    assert scores.total[scores.valid].tolist() == [7.0] * 4


def test_alignment_is_the_recall_of_the_prompt(endpoint, images, tmp_path):
    bert_folder(tmp_path)
    prompts = ["a cat", "a dog", "a red mat", "the mat", "a cat on the mat"]
    found = endpoint(lambda picture, text: ("a cat on a mat" if picture.mean() > 127 else "the dog", None))
    reward = VlmAlignment(
        **asked(found), encoder=str(tmp_path), layer=2, reference="the image contains {prompt}", question="what?"
    )
    said = ["a cat on a mat" if level > 127 else "the dog" for level in (images * 255).round().mean((1, 2, 3)).tolist()]
    expected = BertRecall(tmp_path, 2, Network(8, "float32", "cpu"))([f"the image contains {p}" for p in prompts], said)
    torch.testing.assert_close(reward(images, prompts), expected, rtol=1e-5, atol=1e-5)


def test_requests_are_tried_again_and_carry_the_key(endpoint, images, prompts, monkeypatch):
    answers = iter([500, 429])
    found = endpoint(lambda picture, text: next(answers, ("8", None)))
    monkeypatch.setenv("RLCM_VLM_KEY", "key")
    assert VlmRating(**asked(found, parallel=1, retries=2, request={"seed": 1}))(images, prompts).tolist() == [8.0] * 5
    assert set(found.keys) == {"Bearer key"}
    assert len(found.requests) == 7
    assert found.requests[0]["seed"] == 1


def test_requests_that_fail_for_good(endpoint, images, prompts):
    found = endpoint(lambda picture, text: 500 if "two bees" in text else ("8", None))
    settings = {"name": "vlm_rating", "args": asked(found)}
    with pytest.raises(RewardError, match="gave up after 2 attempts"):
        build_rewards([RewardSettings(**settings)])(images, prompts)
    scores = build_rewards([RewardSettings(**settings, on_failure="skip")])(images, prompts)
    assert scores.valid.tolist() == [True, True, True, False, True]


def test_what_waits_behind_a_dead_endpoint_does_not_try_in_vain(endpoint, images, prompts):
    found = endpoint(lambda picture, text: 500)
    with pytest.raises(RewardError, match="gave up after 2 attempts"):
        VlmRating(**asked(found, parallel=1))(images, prompts)
    assert len(found.requests) == 2
    skipping = VlmRating(**asked(found, parallel=1, retries=2), on_failure="skip")
    with pytest.raises(RewardError, match="gave up after 3 attempts"):
        skipping(images, prompts)
    with pytest.raises(RewardError, match="no attempt is due"):
        skipping(images, prompts)
    assert len(found.requests) == 2 + 3


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b'{"choices": [{"message": {"content": null}}]}'],
)
def test_what_is_no_completion(body):
    with pytest.raises(WireError, match=r"no chat completion|no text"):
        read_completion(body)


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("vlm_yes", {"model": "m", "endpoint": "localhost:1"}, "endpoint"),
        ("vlm_yes", {"model": "m", "endpoint": "http://x/v1", "question": "Well?"}, "must contain {prompt}"),
        ("vlm_yes", {"model": "m", "endpoint": "http://x/v1", "retires": 3}, "retires"),
        ("vlm_yes", {"model": "someone/model"}, "must be pinned"),
        ("vlm_rating", {"model": "m", "endpoint": "http://x/v1", "lowest": 5, "highest": 5}, "must be below"),
        ("vlm_alignment", {"model": "m", "endpoint": "http://x/v1", "reference": "x"}, "reference='x'"),
    ],
)
def test_mistakes_in_settings(name, args, text):
    with pytest.raises(ConfigError, match=text):
        build_rewards([RewardSettings(name=name, args=args)])
