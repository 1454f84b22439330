"""transformers' own common tests pass on our classes, in five set-ups; the tests themselves are in `conformance/`."""

import json
import subprocess
import sys
from functools import cache

import pytest
from conformance import run, sdist, skips


outcomes = cache(run.run)


@pytest.fixture(scope="module", autouse=True)
def common_tests():
    try:
        return sdist.common_tests()
    except sdist.NoSourceDistribution as error:
        pytest.skip(f"transformers' common tests could not be obtained, nothing of conformance was tested. {error}")


def passed(setup: str) -> set[str]:
    return {name for name, outcome in outcomes(setup).items() if outcome.status == "passed"}


@pytest.mark.parametrize("setup", run.SETUPS)
def test_no_common_test_fails(setup):
    failed = {name: outcome.message for name, outcome in outcomes(setup).items() if outcome.status == "failed"}
    assert not failed, "\n".join(f"{name}: {message}" for name, message in failed.items())
    assert len(passed(setup)) > 100


@pytest.mark.parametrize("setup", run.SETUPS)
def test_what_llava_passes_passes_or_is_listed(setup):
    ours = outcomes(setup)
    missing = {name for name in passed(run.REFERENCE) if name in ours} - passed(setup)
    listed = skips.TABLE.read_text(encoding="utf-8")
    assert not {name for name in missing if f"`{name}`" not in listed}
    assert len(missing) <= 3


def test_skips_are_those_of_the_table():
    results = {setup: outcomes(setup) for setup in (*run.SETUPS, run.REFERENCE)}
    table = skips.TABLE.read_text(encoding="utf-8")
    assert skips.render(results) == table, "run `cd tests && python -m conformance.skips`"


def test_without_an_index_nothing_is_left_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(sdist, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(sdist.NoSourceDistribution, match="pip download transformers=="):
        sdist.common_tests()
    assert not list(tmp_path.iterdir())


def test_a_skip_for_a_new_reason_is_an_error():
    with pytest.raises(ValueError, match="new reason"):
        skips.reason("ModelTest.test_save_load", "not today")


def test_planted_bugs_turn_tests_red():
    command = [sys.executable, "-m", "conformance.planted"]
    process = subprocess.run(command, env=run.environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found and found == dict.fromkeys(found, ["passed", "failed"])
