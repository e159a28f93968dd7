"""The text contract: what the texts of the training pairs have in common, and whether a document keeps to it."""

from typst_lit.contract.assessment import CUT_OFF, Assessment, assess
from typst_lit.contract.text_contract import TextContract

__all__ = ["CUT_OFF", "Assessment", "TextContract", "assess"]
