"""The client against a real server process, and everything that can go wrong between them."""

import contextlib
import gzip
import json
import re
import shutil
import signal
import subprocess
import textwrap
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from reward_servers import TOKEN, Proxy, small_server

from rlcm.errors import ConfigError, RewardError
from rlcm.rewards import RewardMix, RewardPart, RewardSettings, build_rewards
from rlcm.rewards.image.jpeg import Incompressibility
from rlcm.rewards.image.pixels import to_png, to_uint8
from rlcm.rewards.served.http import HttpReward
from rlcm.rewards.served.turns import Servers
from rlcm.rewards.served.wire import NPZ, encode_request

REWARDS = """
import time

def red(images, prompts):
    return images[:, 0].mean((1, 2))

def moody(images, prompts, metadata):
    mood = metadata[0].get("mood")
    time.sleep(metadata[0].get("sleep", 0))
    if mood == "raise":
        raise RuntimeError("out of sorts")
    if mood == "nan":
        return [float("nan")] * len(prompts)
    if mood == "short":
        return [1.0]
    return [entry.get("value", 1.0) for entry in metadata]

def parts(images, prompts):
    return {"r": images[:, 0].mean((1, 2)), "b": images[:, 2].mean((1, 2))}

def rare(images, prompts):
    means = images.mean((1, 2, 3))
    return means.where(means < 0.9, float("nan"))
"""


@pytest.fixture(scope="module")
def rewards_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "served.py"
    path.write_text(textwrap.dedent(REWARDS))
    return path


@pytest.fixture(scope="module")
def server(rewards_file):
    names = ("red", "moody", "parts", "rare")
    with small_server("jpeg_incompressibility", *(f"{rewards_file}:{name}" for name in names)) as found:
        yield found


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("RLCM_REWARD_TOKEN", TOKEN)


FAULTS = ["error", "busy", "malformed", "page", "nan", "short", "huge", "slow", "reset", "truncated"]


@pytest.fixture
def proxy(server):
    made = []

    def make(faults=()):
        made.append(Proxy(server.url, faults))
        return made[-1]

    yield make
    for found in made:
        found.close()


def client(address, **changes):
    settings = {"timeout": 20.0, "backoff": 0.01, "retries": 3, "rewards": ["red"], "encoding": "float32"}
    return HttpReward(address=address, **{**settings, **changes})


def red(images):
    return images[:, 0].mean((1, 2))


@pytest.mark.parametrize("encoding", ["uint8", "float32", "png"])
def test_scores_are_those_of_the_local_reward(server, images, prompts, encoding):
    scores = client(server.url, encoding=encoding, rewards=["jpeg_incompressibility", "red"])(images, prompts)
    sent = images if encoding == "float32" else (images * 255).round() / 255
    assert torch.equal(scores["jpeg_incompressibility"], Incompressibility()(images, prompts))
    torch.testing.assert_close(scores["red"], red(sent), rtol=0, atol=1e-7)


def test_requests_are_cut_and_joined_in_order(server, images, prompts):
    metadata = [{"value": float(i)} for i in range(5)]
    scores = client(server.url, batch_size=2, rewards=["moody"])(images, prompts, metadata)
    assert scores.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_one_remote_reward_in_a_mix_of_three(server, images, prompts):
    remote = {"rewards": ["red", "moody"], "encoding": "float32"}
    mix = build_rewards(
        [
            RewardSettings(name="jpeg_compressibility", weight=0.5),
            RewardSettings(name="brightness", normalise=True),
            RewardSettings(name=server.url, label="remote", weight=2.0, args=remote),
        ]
    )
    scores = mix(images, prompts)
    assert set(scores.parts) == {"jpeg_compressibility", "brightness", "remote/red", "remote/moody"}
    rest = 0.5 * scores.parts["jpeg_compressibility"] + mix.norms["brightness"](scores.parts["brightness"])
    torch.testing.assert_close(scores.total, rest + 2 * (red(images) + 1))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_survived(proxy, images, prompts, fault):
    faults = [fault] if fault == "slow" else [fault, fault]
    between = proxy(faults)
    scores = client(between.url, timeout=3.0 if fault == "slow" else 20.0)(images, prompts)
    torch.testing.assert_close(scores, red(images), rtol=0, atol=1e-7)
    assert between.requests == len(faults) + 1


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_stay_stop_or_drop_and_never_score(proxy, images, prompts, fault):
    between = proxy([fault] * 100)
    changes = {"retries": 1, "timeout": 0.3 if fault == "slow" else 20.0}
    with pytest.raises(RewardError, match="gave up after 2 attempts"):
        RewardMix([RewardPart("remote", client(between.url, **changes))])(images, prompts)
    assert between.requests == 2
    skipping = client(between.url, on_failure="skip", **changes)
    scores = RewardMix([RewardPart("remote", skipping, 1.0, False, "skip")])(images, prompts)
    assert not scores.valid.any()
    assert scores.total.isnan().all()
    assert "gave up" in scores.failures[0]


@pytest.mark.parametrize(("mood", "text"), [("raise", "out of sorts"), ("nan", "nan for image 0"), ("short", "shape")])
def test_a_reward_that_fails_in_the_server_is_named(server, images, prompts, mood, text):
    with pytest.raises(RewardError, match=text) as caught:
        client(server.url, rewards=["moody"], retries=0)(images, prompts, [{"mood": mood}] * 5)
    assert "moody" in str(caught.value)


def test_a_reward_that_fails_is_asked_once_more_and_its_server_is_well(proxy, images, prompts):
    between, white = proxy(), images.clone()
    white[1] = 1.0
    reward = client(between.url, batch_size=2, on_failure="skip", rewards=["rare"], breaker_failures=1)
    scores = RewardMix([("remote", reward, 1.0, False, "skip")])(white, prompts)
    assert scores.valid.tolist() == [False, False, True, True, True]
    assert between.requests == 4, "one request of three was asked twice, and the server was not taken for dead"
    with pytest.raises(RewardError, match=r"reward rare returned nan for image 1") as caught:
        client(between.url, rewards=["rare"])(white, prompts)
    assert "server is running" not in str(caught.value)


def test_a_reward_of_several_components_is_asked_for_by_its_name(server, images, prompts):
    scores = client(server.url, rewards=["parts", "red"])(images, prompts)
    assert set(scores) == {"parts/r", "parts/b", "red"}
    torch.testing.assert_close(scores["parts/r"], scores["red"])
    only = client(server.url, rewards=["parts"])(images, prompts)
    assert set(only) == {"parts/r", "parts/b"}


def test_before_anything_is_drawn_a_server_is_asked_what_it_has(server, monkeypatch):
    client(server.url, rewards=["red", "parts"]).check_prompts([], [])
    with pytest.raises(RewardError, match=r"has no reward blue; it serves jpeg_incompressibility, red"):
        client(server.url, rewards=["red", "blue"]).check_prompts([], [])
    monkeypatch.setenv("RLCM_REWARD_TOKEN", "wrong")
    with pytest.raises(RewardError, match="does not take the token in the environment variable RLCM_REWARD_TOKEN"):
        client(server.url).check_prompts([], [])
    monkeypatch.delenv("RLCM_REWARD_TOKEN")
    with pytest.raises(RewardError, match="wants a token; set the environment variable RLCM_REWARD_TOKEN"):
        client(server.url).check_prompts([], [])
    with pytest.raises(RewardError, match=r"127\.0\.0\.1:9: .*Start it with `rlcm rewards serve`"):
        client("http://127.0.0.1:9", retries=1).check_prompts([], [])
    mix = RewardMix([RewardPart("remote", client("http://127.0.0.1:9", retries=0))])
    with pytest.raises(ConfigError, match=r"reward remote: http://127\.0\.0\.1:9: "):
        mix.check_prompts([], [])


def test_of_several_servers_one_that_answers_is_enough(server):
    client("http://127.0.0.1:9", servers=[server.url]).check_prompts([], [])


def test_servers_of_different_rewards_are_told_before_anything_is_drawn(server, rewards_file):
    with small_server(f"{rewards_file}:red") as other:
        client(server.url, servers=[other.url]).check_prompts([], [])
        with pytest.raises(RewardError, match=r"different rewards \(.*: red.*name those that all of them have"):
            client(server.url, servers=[other.url], rewards=None).check_prompts([], [])


def test_an_address_with_a_path_is_told_before_anything_is_drawn(server):
    with pytest.raises(RewardError, match=r"404.*the address is http://host:port"):
        client(server.url + "/score").check_prompts(["a fox"], [{}])


def test_a_server_that_does_not_say_what_it_has_is_taken_as_it_is(proxy):
    client(proxy().url, retries=0).check_prompts(["a fox"], [{}])  # the proxy knows no /health

    # Nor would its rewards take grey pictures: it is asked once, and is not taken for dead.
    between = proxy(["error"])
    reward = client(between.url, breaker_failures=1)
    reward.check_prompts(["a fox"], [{}])
    assert between.requests == 1
    assert not reward.servers.all_dead()


def test_skip_drops_only_the_requests_that_failed(proxy, images, prompts):
    between = proxy([None, "error"])
    reward = client(between.url, batch_size=2, retries=0, on_failure="skip")
    scores = RewardMix([("remote", reward, 1.0, False, "skip")])(images, prompts)
    assert scores.valid.tolist() == [True, True, False, False, True]
    torch.testing.assert_close(scores.total[scores.valid], red(images)[scores.valid], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("on_failure", "breaker", "requests"), [("stop", 99, 2), ("skip", 2, 2), ("skip", 99, 6)])
def test_what_waits_behind_a_dead_server_does_not_try_in_vain(proxy, images, prompts, on_failure, breaker, requests):
    # Three requests of two attempts each. A run that stops wants the first error; one that skips goes on while it may.
    between = proxy(["error"] * 100)
    reward = client(between.url, batch_size=2, retries=1, on_failure=on_failure, breaker_failures=breaker)
    with pytest.raises(RewardError, match="gave up after 2 attempts"):
        reward(images, prompts)
    assert between.requests == requests


def test_a_wrong_token_is_refused_at_once(proxy, images, prompts, monkeypatch):
    between = proxy()
    monkeypatch.setenv("RLCM_REWARD_TOKEN", "wrong")
    with pytest.raises(RewardError, match=r"401.*token_env"):
        client(between.url)(images, prompts)
    assert between.requests == 1, "what cannot pass is not tried again"


def test_unknown_rewards_are_refused_at_once(server, images, prompts):
    with pytest.raises(RewardError, match="there is no blue; served are"):
        client(server.url, rewards=["blue"])(images, prompts)


def test_servers_take_turns(proxy, images, prompts):
    first, second = proxy(), proxy()
    scores = client(first.url, servers=[second.url], batch_size=1)(images.repeat(2, 1, 1, 1), prompts * 2)
    torch.testing.assert_close(scores, red(images).repeat(2), rtol=0, atol=1e-7)
    assert (first.requests, second.requests) == (5, 5)


def test_a_batch_is_shared_out_among_the_servers(proxy, images, prompts):
    between = [proxy() for _ in range(3)]
    first, *others = [found.url for found in between]
    scores = client(first, servers=others, batch_size=32)(images, prompts)
    torch.testing.assert_close(scores, red(images), rtol=0, atol=1e-7)
    assert [found.requests for found in between] == [1, 1, 1], "requests of 2, 2 and 1 pictures, side by side"


def test_a_server_that_keeps_failing_is_left_alone(proxy, images, prompts):
    broken, well = proxy(["error"] * 100), proxy()
    reward = client(broken.url, servers=[well.url], breaker_failures=2, breaker_seconds=1000)
    for _ in range(8):
        torch.testing.assert_close(reward(images[:1], prompts[:1]), red(images[:1]), rtol=0, atol=1e-7)
    assert broken.requests == 2, "after two failures the other server gets everything"
    assert well.requests == 8


def test_the_circuit_breaker_by_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("rlcm.rewards.served.turns.time.monotonic", lambda: now[0])
    servers = Servers(["a", "b"], breaker_failures=2, breaker_seconds=10)
    assert [servers.next().url for _ in range(4)] == ["a", "b", "a", "b"]
    a, b = servers.all
    servers.failed(a)
    assert "a" in {servers.next().url for _ in range(2)}, "one failure is forgiven"
    servers.failed(a)
    assert {servers.next().url for _ in range(6)} == {"b"}
    now[0] += 11
    trial = [servers.next().url for _ in range(6)]
    assert trial.count("a") == 1, "one trial, the others wait for its outcome"
    servers.failed(a)
    assert {servers.next().url for _ in range(6)} == {"b"}
    now[0] += 11
    while servers.next() is not a:
        pass
    servers.succeeded(a)
    assert [servers.next().url for _ in range(4)].count("a") == 2
    for _ in range(2):
        servers.failed(a)
    now[0] += 1
    for _ in range(2):
        servers.failed(b)
    assert not servers.all_dead(), "a request that is being tried again may still succeed"
    servers.gave_up()
    assert servers.all_dead()
    assert servers.next() is a, "while all are left alone, the one whose time ends first is tried"


@pytest.mark.parametrize("on_failure", ["stop", "skip"])
def test_no_batch_makes_attempts_while_all_servers_are_dead(proxy, images, prompts, on_failure):
    between = proxy(["error"] * 2)
    reward = client(between.url, breaker_failures=2, breaker_seconds=1000, retries=1, on_failure=on_failure)
    for text in ("gave up", "no attempt is due", "no attempt is due"):
        with pytest.raises(RewardError, match=text):
            reward(images, prompts)
    assert between.requests == 2
    reward.servers.all[0].closed_until = 0.0  # as if the time had passed
    assert reward(images, prompts).shape == (5,)


def test_no_server_at_all(images, prompts):
    with pytest.raises(RewardError, match=r"127\.0\.0\.1:9.*gave up after 2 attempts"):
        client("http://127.0.0.1:9", retries=1)(images, prompts)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"encoding": "gif"}, "gif"),
        ({"servers": ["x"]}, "'x'"),
        ({"rewards": []}, "must name at least one"),
        ({"rewards": ["a", "a"]}, "none twice"),
    ],
)
def test_settings_out_of_range(changes, text):
    with pytest.raises(ConfigError, match=text):
        build_rewards([RewardSettings(name="http://127.0.0.1:9", args=changes)])


CLIENT = httpx.Client(verify=False, timeout=60)


def post(server, content, kind=NPZ, token=TOKEN, path="/score"):
    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    return CLIENT.post(server.url + path, content=content, headers=headers)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_megabytes_is_refused(server, chunked):
    block = bytes(2**20)
    content = (block for _ in range(100)) if chunked else block * 100
    with contextlib.suppress(httpx.TransportError):  # the server may hang up on a client that does not stop sending
        assert post(server, content).status_code == 413
    assert CLIENT.get(server.url + "/health").json()["status"] == "ok"


def test_a_body_just_too_long_gets_its_answer(server):
    answer = post(server, bytes(9 * 2**20))
    assert answer.status_code == 413
    assert "send fewer pictures" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [(b"\x80\x04K\x01.", NPZ, 422), (b"\x80\x04K\x01.", "application/python-pickle", 415), (b"{}", "application/json", 422)],
)
def test_what_is_no_request_is_refused(server, content, kind, status):
    assert post(server, content, kind).status_code == status


def test_a_packed_body_is_told_to_come_as_it_is(server):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Authorization": f"Bearer {TOKEN}"}
    answer = CLIENT.post(server.url + "/score", content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["detail"] == "the content encoding 'gzip' is not read; send the body as it is."


def test_the_token_guards_scores_and_metrics(server):
    assert post(server, b"{}", "application/json", token="x").status_code == 401
    assert CLIENT.get(server.url + "/metrics").status_code == 401
    assert CLIENT.get(server.url + "/health").json()["rewards"] == ["jpeg_incompressibility", "red", "moody", "parts", "rare"]


def test_metrics_count(server, images, prompts):
    def read():
        text = CLIENT.get(server.url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}

    before = read()
    client(server.url)(images, prompts)
    after = read()
    assert after["rlcm_reward_images_total"] == before.get("rlcm_reward_images_total", 0) + 5
    assert after['rlcm_reward_requests_total{status="200"}'] == before.get('rlcm_reward_requests_total{status="200"}', 0) + 1


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("base64") is None, reason="the page's client is a shell's")
def test_the_client_of_the_page(server, images, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    script = textwrap.dedent(re.search(r"(?m)^    IMAGE=(?:.*\n)+?    END\n", page)[0])
    (tmp_path / "fox.png").write_bytes(to_png(to_uint8(images)[0]))
    script = script.replace("http://127.0.0.1:8000", server.url)
    environment = {"RLCM_REWARD_TOKEN": TOKEN, "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    scores = json.loads(answer.stdout)["scores"]
    assert set(scores) == {"jpeg_incompressibility", "red", "moody", "parts/r", "parts/b", "rare"}
    assert scores["red"][0] == pytest.approx(((images[:1] * 255).round() / 255)[:, 0].mean().item(), abs=1e-6)


def test_64_clients_at_once(server, images, prompts):
    def one(index):
        body, kind = encode_request(images * (index / 64), prompts, None, ["red"], encoding="float32")
        answer = post(server, body, kind)
        return answer.status_code, answer.json()["scores"]["red"]

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(64)))
    assert Counter(status for status, _ in answers) == {200: 64}
    for index, (_, scores) in enumerate(answers):
        torch.testing.assert_close(torch.tensor(scores), red(images) * (index / 64), rtol=0, atol=1e-6)


def test_the_openapi_description_is_kept(server):
    """No 5xx, no hang and no answer outside the description, whatever is sent."""
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operations = {operation.path: operation for operation in (result.ok() for result in schema.get_all_operations())}
    assert set(operations) == {"/health", "/metrics", "/score"}
    checks = [schemathesis.checks.CHECKS.get_one(f"{name}_conformance") for name in ("status_code", "response_schema")]
    right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    for path, mode in (("/health", right), ("/metrics", right), ("/score", right), ("/score", wrong)):

        @settings(
            max_examples=25, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        @given(case=operations[path].as_strategy(generation_mode=mode))
        def check(case):
            answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
            assert answer.status_code < 500, answer.text
            case.validate_response(answer, checks=checks)

        check()


def test_killed_within_a_batch_and_restarted_then_stopped_in_good_order(rewards_file, images, prompts, monkeypatch):
    monkeypatch.setattr("rlcm.rewards.served.turns.LONGEST_PAUSE", 0.5)
    first = small_server(f"{rewards_file}:moody")
    metadata = [{"sleep": 1.5, "value": float(i)} for i in range(5)]
    reward = client(first.url, rewards=["moody"], retries=600)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(reward, images, prompts, metadata)
        time.sleep(0.5)
        first.stop(signal.SIGKILL)
        second = small_server(f"{rewards_file}:moody", port=first.port)
        try:
            assert answer.result(60).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
            answer = pool.submit(client(second.url, rewards=["moody"], retries=0), images, prompts, metadata)
            time.sleep(0.5)
        finally:
            code = second.stop(signal.SIGTERM)
        assert answer.result(60).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0], "a request under way is finished"
        assert code in (0, -signal.SIGTERM)
