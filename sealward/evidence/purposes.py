"""Purposes of use in words: HL7's value set v3-PurposeOfUse (code system v3-ActReason, 2018-08-12).

Which of them are treatment, payment, health care operations (45 CFR 164.501) or the patient's own
request decides what an accounting of disclosures has to list (164.528(a)(1)). A code that is not
clearly one of these is listed, and so is a use without any code.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SYSTEM = "http://terminology.hl7.org/CodeSystem/v3-ActReason"

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "BIORCH": "biomedical research",
        "BTG": "break the glass",
        "CAREMGT": "care management",
        "CLINTRCH": "clinical trial research",
        "CLINTRCHNPC": "clinical trial research without patient care",
        "CLINTRCHPC": "clinical trial research with patient care",
        "CLINTRL": "clinical trial",
        "CLMATTCH": "claim attachment",
        "COC": "coordination of care",
        "COVAUTH": "coverage authorization",
        "COVERAGE": "coverage under policy or program",
        "DISASTER": "disaster",
        "DONAT": "donation",
        "DSRCH": "disease specific healthcare research",
        "ELIGDTRM": "eligibility determination",
        "ELIGVER": "eligibility verification",
        "ENROLLM": "enrollment",
        "ERTREAT": "emergency room treatment",
        "ETREAT": "emergency treatment",
        "FAMRQT": "family requested",
        "FRAUD": "fraud",
        "GOV": "government",
        "HACCRED": "health accreditation",
        "HCOMPL": "health compliance",
        "HDECD": "decedent",
        "HDIRECT": "directory",
        "HDM": "healthcare delivery management",
        "HLEGAL": "legal",
        "HMARKT": "healthcare marketing",
        "HOPERAT": "healthcare operations",
        "HOUTCOMS": "health outcome measure",
        "HPAYMT": "healthcare payment",
        "HPRGRP": "health program reporting",
        "HQUALIMP": "health quality improvement",
        "HRESCH": "healthcare research",
        "HSYSADMIN": "health system administration",
        "HTEST": "test health data",
        "LABELING": "labeling",
        "MEMADMIN": "member administration",
        "METAMGT": "metadata management",
        "MILCDM": "military command",
        "MILDCRG": "military discharge",
        "PATADMIN": "patient administration",
        "PATRQT": "patient requested",
        "PATSFTY": "patient safety",
        "PERFMSR": "performance measure",
        "POARCH": "population origins or ancestry healthcare research",
        "POPHLTH": "population health",
        "PRECLINTRCH": "preclinical trial research",
        "PUBHLTH": "public health",
        "PWATRNY": "power of attorney",
        "RECORDMGT": "records management",
        "REMITADV": "remittance advice",
        "SUPNWK": "support network",
        "SYSDEV": "system development",
        "THREAT": "threat",
        "TRAIN": "training",
        "TRANSRCH": "translational healthcare research",
        "TREAT": "treatment",
    }
)
"""Code → HL7's display."""

INSIDE = frozenset({"session.break-glass", "deid.reidentify"})
"""Events about a patient that by themselves give nothing to anybody outside."""

NOT_ACCOUNTED = frozenset(
    {
        # Treatment
        "TREAT", "ETREAT", "BTG", "ERTREAT", "COC", "CAREMGT",
        # Payment
        "HPAYMT", "CLMATTCH", "COVAUTH", "COVERAGE", "ELIGDTRM", "ELIGVER", "ENROLLM", "REMITADV",
        # Health care operations
        "HOPERAT", "HACCRED", "HCOMPL", "HOUTCOMS", "HPRGRP", "HQUALIMP", "HSYSADMIN", "LABELING",
        "METAMGT", "MEMADMIN", "PATADMIN", "PATSFTY", "PERFMSR", "RECORDMGT", "SYSDEV", "HTEST",
        "TRAIN",
        # To the patient
        "PATRQT",
    }
)  # fmt: skip
"""Disclosures for these are not listed in an accounting; the report leaves out the same."""


def in_words(code: str) -> str:
    """Return the purpose in words; the code itself when it is not of the value set."""
    return WORDS.get(code, code)
