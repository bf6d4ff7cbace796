"""All parity rows."""

from parity_tests.cases import colt5, glom, hourglass, mammut, scalable_vit, simple_vit
from parity_tests.cases.case import Case as Case


CASES: list[Case] = [
    *colt5.CASES,
    *glom.CASES,
    *hourglass.CASES,
    *mammut.CASES,
    *scalable_vit.CASES,
    *simple_vit.CASES,
]
MODES = {
    "colt5": colt5.MODES,
    "glom": glom.MODES,
    "hourglass": hourglass.MODES,
    "mammut": mammut.MODES,
    "scalable_vit": scalable_vit.MODES,
    "simple_vit": simple_vit.MODES,
}
