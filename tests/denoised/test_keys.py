"""Keys from the command line: made, listed, revoked, sent; no server is open to all by accident."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from config.settings import Settings, default_data_dir
from denoised.client import Client
from denoised.errors import CommandError
from denoised.exposure import check_exposure, key_command
from jobs.api_keys import KeyStore
from jobs.embedded_redis import url_at
from tests.denoised.conftest import denoised
from tests.denoised.scripted_server import Reply, scripted_server

MakeSettings = Callable[..., Settings]


@pytest.fixture
def url(settings: Settings) -> str:
    assert settings.redis_url is not None
    return settings.redis_url


def test_a_key_is_made_shown_once_listed_and_revoked(url: str) -> None:
    made = denoised("keys", "create", "studio", "--max-queued", 5, "--json", "--redis-url", url)
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    assert key["key"].startswith(f"dn_{key['id']}_")
    assert key["quotas"]["max_queued"] == 5
    listed = denoised("keys", "list", "--json", "--redis-url", url)
    assert json.loads(listed.stdout) == [{k: v for k, v in key.items() if k != "key"}]
    table = denoised("keys", "list", "--redis-url", url).stdout
    assert key["id"] in table
    assert "studio" in table
    assert "max_queued 5" in table
    assert denoised("keys", "revoke", key["id"], "--redis-url", url).returncode == 0
    again = denoised("keys", "revoke", key["id"], "--redis-url", url)
    assert (again.returncode, again.stderr) == (1, f"denoised: no API key {key['id']!r}\n")


def test_keys_are_kept_in_the_data_directory_without_a_server(tmp_path: object) -> None:
    made = denoised("keys", "create", "me", "--data-dir", tmp_path)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    listed = denoised("keys", "list", "--json", "--data-dir", tmp_path)
    assert [key["id"] for key in json.loads(listed.stdout)] == [token.split("_")[1]]


def test_no_server_listens_beyond_this_machine_without_keys(url: str, tmp_path: object) -> None:
    command = ("api", "--redis-url", url, "--data-dir", tmp_path, "--port", 0)
    for host in ("0.0.0.0", "::", "gpu-box"):
        refused = denoised(*command, "--host", host)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith(
            f"denoised: refusing to listen on {host} without API keys"
        )


def test_a_server_that_has_keys_or_was_told_may_listen_beyond_this_machine(
    make_settings: MakeSettings, redis_client: Redis
) -> None:
    exposed = make_settings(host="0.0.0.0")
    with pytest.raises(CommandError, match="denoised keys create"):
        check_exposure(exposed)
    for mode in ("never", "always"):
        check_exposure(exposed.model_copy(update={"require_keys": mode}))
    check_exposure(make_settings())
    KeyStore(redis_client).create("studio")
    check_exposure(exposed)


def test_the_advice_to_make_a_key_leads_to_where_the_server_looks(tmp_path: Path) -> None:
    data_dir = tmp_path / "of mine"
    refused = denoised("serve", "--host", "0.0.0.0", "--port", 0, "--data-dir", data_dir)
    assert refused.returncode == 2
    [advice] = re.findall("`(denoised keys create [^`]*)`", refused.stderr)
    assert denoised(*shlex.split(advice)[1:]).returncode == 0
    listed = denoised("keys", "list", "--data-dir", data_dir)
    assert "NAME" in listed.stdout


def test_the_advice_names_neither_the_usual_directory_nor_a_password(
    make_settings: MakeSettings, url: str
) -> None:
    usual = default_data_dir()
    exposed = make_settings(host="0.0.0.0", data_dir=usual)
    with pytest.raises(CommandError, match="`denoised keys create NAME --redis-url URL`") as told:
        check_exposure(exposed)
    assert url not in str(told.value)
    assert key_command(exposed.model_copy(update={"redis_url": url_at(usual / "redis")})) == (
        "denoised keys create NAME"
    )


def test_looking_for_keys_makes_no_data_directory(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    listed = denoised("keys", "list", "--data-dir", nowhere)
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "no keys\n", "")
    assert denoised("keys", "list", "--json", "--data-dir", nowhere).stdout == "[]\n"
    revoked = denoised("keys", "revoke", "k", "--data-dir", nowhere)
    assert (revoked.returncode, revoked.stderr) == (1, "denoised: no API key 'k'\n")
    assert not nowhere.exists()


def test_no_keys_in_a_redis_are_told_as_none(url: str) -> None:
    assert denoised("keys", "list", "--redis-url", url).stdout == "no keys\n"


def test_a_client_sends_the_key_it_is_given_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = json.dumps({"data": [], "has_more": False, "next_cursor": None}).encode()
    with scripted_server(lambda *_: Reply(body=page)) as server:
        for key, variable in ((None, None), ("given", "other"), (None, "environment")):
            monkeypatch.delenv("DENOISED_API_KEY", raising=False)
            if variable:
                monkeypatch.setenv("DENOISED_API_KEY", variable)
            with Client(server.url, api_key=key) as client:
                client.list()
        monkeypatch.delenv("DENOISED_API_KEY")
        denoised("--api-key", "option", "jobs", "list", "--url", server.url)
        denoised("jobs", "list", "--url", server.url, DENOISED_API_KEY="variable")
        sent = [headers.get("authorization") for _, _, headers in server.requests]
    bearers = ["given", "environment", "option", "variable"]
    assert sent == [None, *(f"Bearer {key}" for key in bearers)]
