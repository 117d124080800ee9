"""Addresses: no secret is taken, written or shown; what names a variable works."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcm.addresses import bearer_token, check_address, request_address, without_secrets
from rlcm.errors import ConfigError
from rlcm.report.reading import read_run
from rlcm.rewards import RewardSettings

SECRETS = [
    "https://me:hunter2@host:8000",
    "HTTP://hunter2@host/deep",
    "https://host/score?token=hunter2",
    "https://host?model=a&api_key=hunter2",
    "https://host/?X-Amz-Signature=hunter2&v=1",
    "https://me:hunter2@[::1]:80/",
]
FINE = [
    "http://127.0.0.1:8000",
    "https://host/score?version=2024-01&model=key",
    "https://${LOGIN}@host",
    "https://${USER_}:${PASSWORD}@host?key=${KEY}",
    "http://[::1]:8000/a@b",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize("place", ["name", "servers", "endpoint"])
def test_a_secret_is_refused_and_the_remedy_works_as_typed(address, place):
    def entry(text):
        if place == "name":
            return {"name": text}
        return {"name": "http://host:1", "args": {place: [text] if place == "servers" else text}}

    with pytest.raises(ValueError, match="environment variable") as refused:
        RewardSettings.model_validate(entry(address))
    message = refused.value.errors()[0]["msg"]
    assert "hunter2" not in message
    remedy = message.split("into the address: ")[1].split(" (in single")[0]
    RewardSettings.model_validate(entry(remedy))


@pytest.mark.parametrize("address", FINE)
def test_addresses_without_one_are_fine(address):
    check_address(address)
    assert without_secrets(address) == address
    assert RewardSettings(name=address).name == address


@pytest.mark.parametrize("address", ["http://", "http:///x", "https://host:99999999", "http://[::1", "ftp://host"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="is not an address"):
        check_address(address)


@given(
    st.text("abcXYZ019-_.~!$%*", min_size=6, max_size=30),
    st.sampled_from(["https://{}@h", "http://u:{}@h/x", "http://h?token={}"]),
)
def test_no_secret_is_ever_shown(secret, form):
    text = f"error: {form.format(secret)}, given up"
    assert secret not in without_secrets(text)
    assert without_secrets(text).endswith("given up")


def test_variables_are_filled_in_where_the_request_is_sent(monkeypatch):
    monkeypatch.setenv("LOGIN", "me:p@ss/word")
    monkeypatch.setenv("KEY", "a b&c")
    found = request_address("https://${LOGIN}@host/deep/?key=${KEY}", "/score")
    assert found == "https://me:p%40ss%2Fword@host/deep/score?key=a%20b%26c"
    monkeypatch.delenv("KEY")
    with pytest.raises(ConfigError, match="environment variable KEY, which is not set"):
        request_address("https://host?key=${KEY}", "/score")


def test_the_report_of_an_older_run_shows_none(tmp_path):
    (tmp_path / "config.yaml").write_text("name: old\nrewards:\n- name: https://me:hunter2@host\n")
    found = read_run(tmp_path).config_text
    assert "hunter2" not in found
    assert "https://***@host" in found


@pytest.mark.parametrize("token", ["sécret", "two words", "broken\n", "tab\t", "\x7f"])
def test_a_token_that_no_request_can_carry_is_refused_and_not_shown(monkeypatch, token):
    monkeypatch.setenv("OWN_TOKEN", token)
    with pytest.raises(ConfigError, match="OWN_TOKEN cannot be sent") as error:
        bearer_token("OWN_TOKEN")
    assert token.strip() not in str(error.value)


def test_a_token_is_taken_as_it_is(monkeypatch):
    monkeypatch.setenv("OWN_TOKEN", "a-Z0._~+/=%!:")
    assert bearer_token("OWN_TOKEN") == "a-Z0._~+/=%!:"
    monkeypatch.setenv("OWN_TOKEN", "")
    assert bearer_token("OWN_TOKEN") is bearer_token("NOT_SET") is None
