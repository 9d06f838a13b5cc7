"""Secrets reach no record, log or page: tokens of hubs, keys of judges, passwords in addresses."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench import adapters, cli
from sparsebench.redaction import HIDDEN, public_address, redacted, redacted_command, redacted_text

TOKEN = "hf_" + "AbCdEf0123456789xyzw"
KEY = "judge-key-0123456789"
PASSWORD = "pass-w0rd-of-mine"
SECRETS = (TOKEN, KEY, PASSWORD)


@pytest.fixture(autouse=True)
def secrets_in_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


def everything(folder) -> str:
    """All that lies in a folder, with the texts of tables."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found.append(path.read_bytes().decode("utf-8", "replace"))
            if path.suffix == ".parquet":
                found.append(pd.read_parquet(path).to_csv())
    return "\n".join(found)


@pytest.mark.parametrize(
    "prefix",
    ["hf_", "sk-", "ghp_", "gho_", "github_pat_", "glpat-", "AKIA", "ASIA", "xoxb-", "xapp-", "pypi-", "npm_", "AIza", "sk_live_"],
)  # fmt: skip
def test_tokens_of_known_forms_are_hidden(prefix):
    token = prefix + "A1B2C3D4E5F6G7H8J9K0" * 2
    assert redacted({"description": f"with {token}, in a text"}) == {"description": f"with {HIDDEN}, in a text"}
    assert redacted_text(f"{prefix}short is no token") == f"{prefix}short is no token"


def test_a_run_whose_errors_answers_and_command_hold_secrets_publishes_none(small, tmp_path, monkeypatch, capfd):
    def broken(self, layer):
        raise RuntimeError(f"401 for https://me:{PASSWORD}@host/x?token={KEY} with Authorization: Bearer {TOKEN}")

    monkeypatch.setattr(adapters.get("magnitude"), "score", broken)
    grids = [
        {
            **small.data["grids"][0],
            "tasks": [small.task("tiny-choice")],
            "methods": [{"method": "magnitude", "budgets": {"sparsity": 0.2}}],
        }
    ]
    path = small.write(grids=grids, description=f"with {TOKEN}")
    out = tmp_path / "results"
    command = ["sparsebench", "run", str(path), "--out", str(out), "--ray-address", f"ray://me:{PASSWORD}@head:1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 3
    said = capfd.readouterr()
    assert (out / "site" / "index.html").is_file()
    stored = everything(out)
    assert HIDDEN in stored
    for secret in SECRETS:
        assert secret not in stored
        assert secret not in said.out + said.err


def test_errors_that_reach_the_terminal_hold_no_secret(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["sparsebench", "run", f"{TOKEN}.yaml"])
    with pytest.raises(SystemExit):
        cli.main()
    assert TOKEN not in capfd.readouterr().err


@given(st.text(max_size=30), st.sampled_from(SECRETS[:2]), st.text(max_size=30))
def test_values_of_secret_variables_are_hidden_wherever_they_stand(before, secret, after):
    assert secret not in redacted_text(before + secret + after)
    assert secret not in str(redacted({"a": [before + secret + after]}))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--token", "abcdefgh"], f"--token {HIDDEN}"),
        (["--api-key=abcdefgh"], f"--api-key={HIDDEN}"),
        (["OPENAI_API_KEY=abcdefgh", "x"], f"OPENAI_API_KEY={HIDDEN} x"),
        (["--model", "path:/tmp/tokenizer"], "--model path:/tmp/tokenizer"),
        (["--limit", "5"], "--limit 5"),
    ],
)
def test_a_command_keeps_all_but_its_secrets(words, shown):
    assert redacted_command(words) == shown


def test_addresses_lose_users_and_signatures_only():
    assert public_address(f"https://me:{PASSWORD}@host/a?b=1&X-Amz-Signature=x&sig=y") == "https://host/a?b=1"
    assert public_address("https://host/a?b=1") == "https://host/a?b=1"
    assert public_address("no address at all") == "no address at all"
