"""What a server gives is what it said, and stays so: other rewards are refused, not mixed with those before."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tiny_runs import PROMPTS, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError, RewardError
from rlcm.rewards import RewardSettings, build_reward
from rlcm.rewards.commands import serve_rewards
from rlcm.rewards.served.wire import WireError
from rlcm.training.trainer import Trainer


class Scripted:
    """A server whose `/health` names a reward, and whose answers hold scores from 0 on under a name."""

    def __init__(self):
        self.health, self.answer = ["x"], "x"
        self.status, self.headers = 200, {}
        script = self

        class Handler(BaseHTTPRequestHandler):
            def say(self, status, value, headers):
                body = json.dumps(value).encode() if value is not None else b""
                self.send_response(status)
                for key, text in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, text)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.say(200, {"status": "ok"} | ({"rewards": script.health} if script.health else {}), {})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                scores = list(map(float, range(len(asked["prompts"]))))
                whole = {"scores": {script.answer: scores}} if script.status == 200 else None
                self.say(script.status, whole, script.headers)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def scripted():
    script = Scripted()
    yield script
    script.server.shutdown()
    script.server.server_close()


def reward_of(scripted, **args):
    given = {"encoding": "png", "retries": 0, "backoff": 0, **args}
    return build_reward(RewardSettings(name=scripted.url, args=given))


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_an_answer_holds_what_the_server_said_that_it_has(scripted):
    reward = reward_of(scripted)
    reward.check_prompts(PROMPTS, [{}] * 3)
    assert reward(IMAGES, PROMPTS[:2]).tolist() == [0, 1]
    scripted.answer = "x/part"
    with pytest.raises(RewardError, match=r"it gave the rewards \['x/part'\], and the answers before had \['x'\]; start all"):
        reward(IMAGES, PROMPTS[:2])
    scripted.answer = "y"
    with pytest.raises(RewardError, match=r"it said that it has the rewards \['x'\] and gave \['y'\]; start all"):
        reward(IMAGES, PROMPTS[:2])


def test_a_server_that_says_nothing_gives_what_it_gave_first(scripted):
    scripted.health = None
    reward = reward_of(scripted)
    reward.check_prompts(PROMPTS, [{}] * 3)
    reward(IMAGES, PROMPTS[:2])
    scripted.answer = "y"
    with pytest.raises(RewardError, match=r"it gave the rewards \['y'\], and the answers before had \['x'\]"):
        reward(IMAGES, PROMPTS[:2])


def test_where_one_server_gives_another_reward_the_other_one_is_asked(scripted):
    other = Scripted()
    try:
        reward = reward_of(scripted, servers=[other.url], retries=3, batch_size=1, breaker_failures=1)
        reward.check_prompts(PROMPTS, [{}] * 3)
        other.answer = "y"
        for _ in range(3):
            assert reward(IMAGES, PROMPTS[:2]).tolist() == [0, 0]
        assert [server.failures > 0 for server in reward.servers.all] == [False, True]
    finally:
        other.server.shutdown()
        other.server.server_close()


@pytest.mark.parametrize("args", [{}, {"rewards": ["x"]}])
def test_a_run_goes_on_with_the_rewards_that_its_server_gave_before(scripted, tmp_path, args):
    rewards = [{"name": scripted.url, "label": "far", "args": {"encoding": "png", "retries": 0, "backoff": 0, **args}}]
    config = tiny_config(tmp_path, rewards=rewards, run={"rounds": 1})
    Trainer(config, model=lcm_pipeline(), prompts=PROMPTS).train()
    again = {"model": lcm_pipeline(), "prompts": PROMPTS}
    scripted.health = ["x", "y"]
    if not args:
        with pytest.raises(ConfigError, match=r'rewards\.far, what its servers give: \["x"\] -> \["x", "y"\]'):
            Trainer.resume(tmp_path / "run", ["run.rounds=2"], **again)
        scripted.health = ["x"]
    Trainer.resume(tmp_path / "run", ["run.rounds=2"], **again).train()


def test_a_redirection_names_where_to(scripted):
    scripted.status, scripted.headers = 302, {"Location": "https://elsewhere.test/score"}
    with pytest.raises(RewardError, match=r"redirects to https://elsewhere\.test/score; give the address that answers itself"):
        reward_of(scripted)(IMAGES, PROMPTS[:2])
    scripted.headers = {"Location": "/other/score"}
    with pytest.raises(RewardError, match=rf"redirects to {scripted.url}/other/score; give"):
        reward_of(scripted)(IMAGES, PROMPTS[:2])
    scripted.status, scripted.headers = 204, {}
    with pytest.raises(RewardError, match=r"refused the request with status 204$"):
        reward_of(scripted)(IMAGES, PROMPTS[:2])


def test_where_an_answer_is_wrong_nobody_is_told_to_start_the_server(scripted, monkeypatch):
    def wrong(body, batch):
        raise WireError(f"99 scores for {batch} pictures.")

    monkeypatch.setattr("rlcm.rewards.served.http.decode_answer", wrong)
    with pytest.raises(
        RewardError, match=r"^http://\S+: 99 scores for 2 pictures; gave up after 1 attempt\. Check what answers at"
    ):
        reward_of(scripted)(IMAGES, PROMPTS[:2])


def test_a_server_asks_the_server_behind_it_before_it_serves():
    dead = {"name": "http://127.0.0.1:9", "label": "far", "args": {"retries": 0, "timeout": 1}}
    with pytest.raises(RewardError, match=r"^reward far: http://127\.0\.0\.1:9: .*Start it with `rlcm rewards serve`"):
        serve_rewards([json.dumps(dead)], port=0)
