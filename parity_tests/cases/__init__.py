"""All parity rows."""

from parity_tests.cases import glom
from parity_tests.cases.case import Case as Case


CASES: list[Case] = [*glom.CASES]
MODES = {"glom": glom.MODES}
