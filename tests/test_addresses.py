"""Addresses: what is below one, whose endpoint it has, and that a secret is neither taken nor repeated."""

import pytest

from kd.addresses import Address, settled
from kd.errors import ConfigError, InputError, StoreError
from kd.places import Place
from kd.store import Store
from kd.tasks.base import folder_and_pattern
from tests.mini import MINI, mini_config, write_mini

QUERY = "?endpoint_override=127.0.0.1:9000&scheme=http"
SECRET = "hush-hush"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "STORAGE_EMULATOR_HOST",
        "HF_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "below"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix/a/b"),
        ("s3://bucket/prefix/", "s3://bucket/prefix/a/b"),
        (f"s3://bucket/prefix{QUERY}", f"s3://bucket/prefix/a/b{QUERY}"),
        (f"s3://bucket/{QUERY}", f"s3://bucket/a/b{QUERY}"),
        ("gs://anonymous@bucket/p?scheme=http", "gs://anonymous@bucket/p/a/b?scheme=http"),
        ("/a folder?x=1", "/a folder?x=1/a/b"),
    ],
)
def test_what_is_below_an_address_stands_before_its_query(url: str, below: str) -> None:
    assert Address.of(url).below("a/b").url == below


def test_a_run_directory_is_below_a_root_with_a_query(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = mini_config(write_mini(tmp_path_factory.mktemp("mini")), root=f"s3://bucket/runs/{QUERY}")
    assert config.directory == f"s3://bucket/runs/mini{QUERY}"
    store = Store.at(config.directory)
    assert store.path("examples/x") == "s3://bucket/runs/mini/examples/x"


@pytest.mark.parametrize(
    ("url", "variable", "value", "endpoint"),
    [
        ("s3://bucket/x", "AWS_ENDPOINT_URL", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("s3://bucket/x", "AWS_ENDPOINT_URL_S3", "https://s3.example.org/", "https://s3.example.org"),
        ("s3://bucket/x?endpoint_override=other:1&scheme=http", "AWS_ENDPOINT_URL", "http://127.0.0.1:9000", "http://other:1"),
        ("s3://bucket/x?endpoint_override=other:1", "AWS_ENDPOINT_URL", "http://127.0.0.1:9000", "https://other:1"),
        ("gs://bucket/x", "STORAGE_EMULATOR_HOST", "127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("hf://datasets/me/mine", "HF_ENDPOINT", "https://hub.example.org", "https://hub.example.org"),
        ("gs://bucket/x", "AWS_ENDPOINT_URL", "http://127.0.0.1:9000", None),
        ("s3://bucket/x", "AWS_ENDPOINT_URL", "", None),
    ],
)
def test_the_endpoint_is_the_urls_or_the_environments_and_stays_with_what_is_sent_to_workers(
    monkeypatch: pytest.MonkeyPatch, url: str, variable: str, value: str, endpoint: str | None
) -> None:
    monkeypatch.setenv(variable, value)
    settled_url = settled(url).url
    monkeypatch.delenv(variable)
    assert Address.of(settled_url).endpoint == endpoint
    assert settled(settled_url).url == settled_url


def test_the_strongest_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://two:2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert settled("s3://bucket/x").endpoint == "http://two:2"
    assert settled("s3://bucket/x").options["region"] == "eu-west-1"
    assert settled("s3://bucket/x?region=us-east-2").options["region"] == "us-east-2"


def test_amazon_says_itself_where_its_buckets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert settled("s3://bucket/x").url == "s3://bucket/x"


@pytest.mark.parametrize(
    ("path", "folder", "pattern"),
    [
        (f"s3://corp/data{QUERY}", f"s3://corp/data{QUERY}", None),
        (f"s3://corp/data/train.jsonl{QUERY}", f"s3://corp/data{QUERY}", "train.jsonl"),
        (f"s3://corp/data/part-?.csv{QUERY}", f"s3://corp/data{QUERY}", "part-?.csv"),
        ("s3://corp/data/part-?.csv", "s3://corp/data", "part-?.csv"),
    ],
)
def test_the_query_of_a_corpus_is_no_glob_and_stays_with_its_folder(path: str, folder: str, pattern: str | None) -> None:
    assert folder_and_pattern(path) == (folder, pattern)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"s3://{SECRET}@bucket/x",
        f"gs://{SECRET}@bucket/x",
        f"s3://bucket/x?secret_key={SECRET}",
        f"s3://bucket/x?endpoint_override=me:{SECRET}@host:1",
        f"hf://{SECRET}@datasets/me/mine",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_mini(tmp_path_factory.mktemp("mini"))
    side = {"path": url, "format": "jsonl"}
    for change in (
        {"root": url},
        {"task": MINI["task"] | {"path": url}},
        {"task": MINI["task"] | {"path": "c", "id": "id", "llm": side}},
    ):
        with pytest.raises(ConfigError, match="must hold no credentials|unknown option 'secret_key'; expected") as refused:
            mini_config(path, **change)
        assert SECRET not in str(refused.value)
    with pytest.raises(StoreError, match="credentials|secret_key") as unstored:
        Store.at(url)
    with pytest.raises(InputError, match="credentials|secret_key") as unread:
        Place.at(url)
    assert SECRET not in f"{unstored.value}{unread.value}"


def test_a_secret_in_the_endpoint_of_the_environment_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@host:1")
    with pytest.raises(StoreError, match="must hold no credentials") as refused:
        Store.at("s3://bucket/x")
    assert SECRET not in str(refused.value)
