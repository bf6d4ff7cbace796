"""All parity rows."""

from parity_tests.cases import glom, hourglass, mammut, scalable_vit, simple_vit
from parity_tests.cases.case import Case as Case


CASES: list[Case] = [*glom.CASES, *hourglass.CASES, *mammut.CASES, *scalable_vit.CASES, *simple_vit.CASES]
MODES = {
    "glom": glom.MODES,
    "hourglass": hourglass.MODES,
    "mammut": mammut.MODES,
    "scalable_vit": scalable_vit.MODES,
    "simple_vit": simple_vit.MODES,
}
