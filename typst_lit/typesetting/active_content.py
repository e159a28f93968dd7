"""Warnings of what a PDF offers its readers to open: attached files, and links that do not lead to web pages.

Read from the PDF and not from the source, in which a link can be made by a function, a show rule or a bibliography.
Images bring none with them: the compiler leaves out the links and attachments of images in SVG and PDF.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from typst_lit.errors import plural
from typst_lit.typesetting.results import Diagnostic

MAX_WARNINGS = 20  # per document, of attachments and of links
_USUAL_TARGET = re.compile(r"(https?|mailto|tel):", re.IGNORECASE)
_ATTACHMENT_HINT = "PDF readers offer to open it"
_LINK_HINT = "only http, https, mailto and tel are usual"


def active_content(pdf: pdfium.PdfDocument) -> list[Diagnostic]:
    """Returns a warning per attached file and per unusual target of links, the first `MAX_WARNINGS` of each."""
    attachments = [f"the PDF has an attached file: {name}" for name in attachment_names(pdf)]
    first_pages: dict[str, int] = {}
    for index in range(len(pdf)):
        for target in link_targets(pdf[index]):
            if not _USUAL_TARGET.match(target):
                first_pages.setdefault(target, index)
    links = [f"a link on page {index + 1} opens {target}" for target, index in first_pages.items()]
    return _warnings(attachments, "attached file", _ATTACHMENT_HINT) + _warnings(links, "unusual link", _LINK_HINT)


def attachment_names(pdf: pdfium.PdfDocument) -> list[str]:
    """Returns the names of the files that are attached to a PDF."""
    names = []
    for index in range(raw.FPDFDoc_GetAttachmentCount(pdf.raw)):
        attachment = raw.FPDFDoc_GetAttachment(pdf.raw, index)
        name = (raw.FPDF_WCHAR * (raw.FPDFAttachment_GetName(attachment, None, 0) // 2))()
        raw.FPDFAttachment_GetName(attachment, name, len(name) * 2)
        names.append(bytes(name).decode("utf-16-le", "replace").rstrip("\0"))
    return names


def link_targets(page: pdfium.PdfPage) -> Iterator[str]:
    """Yields the target of each link on a page that leads out of the document; an action without one by its number."""
    position, link = raw.c_int(), raw.FPDF_LINK()
    while raw.FPDFLink_Enumerate(page.raw, position, link):
        action = raw.FPDFLink_GetAction(link)
        action_type = raw.FPDFAction_GetType(action) if action else raw.PDFACTION_GOTO
        if action_type == raw.PDFACTION_URI:
            target = (raw.c_char * raw.FPDFAction_GetURIPath(page.pdf.raw, action, None, 0))()
            raw.FPDFAction_GetURIPath(page.pdf.raw, action, target, len(target))
            yield target.value.decode("utf-8", "replace")
        elif action_type != raw.PDFACTION_GOTO:
            yield f"an action of type {action_type}"


def _warnings(messages: list[str], noun: str, hint: str) -> list[Diagnostic]:
    warnings = [Diagnostic("warning", message, hint=hint) for message in messages[:MAX_WARNINGS]]
    if len(messages) > MAX_WARNINGS:
        warnings.append(Diagnostic("warning", plural(len(messages) - MAX_WARNINGS, f"more {noun}")))
    return warnings
