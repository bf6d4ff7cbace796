"""From a divergence to the sentence that names the mistake."""

from jaxmodels.compare.diagnosis.backward import FirstStep, diagnose_gradients, diagnose_loss
from jaxmodels.compare.diagnosis.forward import Forward, diagnose_forward
from jaxmodels.compare.diagnosis.search import Finding, in_words
from jaxmodels.compare.divergence import Divergence
from jaxmodels.compare.preparation import Subject


def diagnose(
    subject: Subject, divergence: Divergence, forward: Forward, first_step: FirstStep | None
) -> str | None:
    """The mistake that explains a divergence, in one sentence; None where none was found."""
    findings: list[Finding] = []
    if divergence.kind in ("layer", "code", "outputs"):
        findings = diagnose_forward(subject, forward, divergence)
    elif first_step is not None and divergence.kind == "loss":
        findings = diagnose_loss(subject, first_step) or diagnose_gradients(subject, first_step)
    elif first_step is not None and divergence.kind == "gradients":
        findings = diagnose_gradients(subject, first_step)
    return in_words(findings)
