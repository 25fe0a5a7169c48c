"""The verb `doctor`."""

import json

import pytest

from ragjax.doctor import examine


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["the disk is full, or ragjax[full]"], 2)])
def test_doctor_exits_with_2_where_something_is_amiss(monkeypatch, ended, problems, code):
    monkeypatch.setattr("ragjax.doctor._MATMUL", 16)
    findings = examine() | {"problems": problems, "decoding": "pip install 'ragjax[cpu]'"}
    monkeypatch.setattr("ragjax.doctor.examine", lambda: findings)
    found, told = ended("doctor")
    assert found == code
    assert ("the disk is full, or ragjax[full]" in told.out) == bool(problems)
    assert "ragjax[cpu]" in told.out
    found, told = ended("doctor", "--json")
    assert (found, json.loads(told.out)) == (code, findings)


@pytest.mark.parametrize(
    ("compiles", "serves", "told"),
    [(False, False, "ragjax[cpu]"), (True, False, "not known"), (True, True, "panels")],
)
def test_doctor_says_whose_products_decode(monkeypatch, compiles, serves, told):
    monkeypatch.setattr("ragjax.doctor._MATMUL", 16)
    monkeypatch.setattr("ragjax.doctor.compiles", lambda: compiles)
    monkeypatch.setattr("ragjax.doctor.kernels_serve", lambda: serves)
    found = examine()
    assert told in found["decoding"]
    assert (told in found["training"]) is ("panels" not in told)
