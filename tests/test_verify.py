"""Every case of the catalogue passes, and a verdict can fail."""

import math

import pytest

from otprox import verify
from otprox.verify import Case


@pytest.mark.parametrize("case", verify.catalogue(), ids=lambda case: case.name)
def test_catalogue(case):
    verdict = verify.judge(case)
    assert verdict.passed, verdict


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_orders_are_observed(order):
    rungs = (0.1, 0.05, 0.025)
    assert verify.observed_order(rungs, [h**order for h in rungs]) == pytest.approx(order)
    counts = (100, 200, 400)
    assert verify.observed_order(counts, [n**-order for n in counts]) == pytest.approx(order)
    assert verify.observed_order(rungs, [h**-order for h in rungs]) == pytest.approx(-order)


@pytest.mark.parametrize(
    "case",
    [
        Case("wrong order", "", (0.1, 0.05), lambda h: h, order=2.0),
        Case("grows", "", (0.1, 0.05), lambda h: 1 / h, order=1.0),
        Case("too large", "", (0.1, 0.05), lambda h: h, within=1e-3),
        Case("not finite", "", (0.1, 0.05), lambda h: math.nan, within=1.0),
        Case("claims nothing", "", (0.1, 0.05), lambda h: h),
    ],
    ids=lambda case: case.name,
)
def test_false_claims_fail(case):
    assert not verify.judge(case).passed
