"""All parity rows."""

from parity_tests.cases import glom, simple_vit
from parity_tests.cases.case import Case as Case


CASES: list[Case] = [*glom.CASES, *simple_vit.CASES]
MODES = {"glom": glom.MODES, "simple_vit": simple_vit.MODES}
