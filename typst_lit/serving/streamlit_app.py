"""The web page, a Streamlit script: a record on the left, its document on the right. `typst-lit app` runs it."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

import streamlit as st
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TypstLexer

from typst_lit.contract import CUT_OFF
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.errors import UserError, plural
from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.inference.outputs import file_name
from typst_lit.inference.settings import RANGES, GenerationSettings
from typst_lit.serving.service import (
    MAX_ATTEMPTS,
    GenerationError,
    GenerationService,
    QueueFullError,
    ServiceUnavailableError,
)
from typst_lit.serving.uploads import read_upload
from typst_lit.serving.web_page import MAX_NUMBER, load_generator
from typst_lit.typesetting.results import shorten

PPI = 110.0  # of the page images
MAX_WAITING = 16  # documents of all visitors
SECONDS_BETWEEN_UPDATES = 0.25
NUM_PREVIEW_LINES = 12
SLIDER_STEP = 0.05
MAX_TOP_K = 1000  # of the input field, as those of the seed and the attempts, unless the command line has a larger one
MAX_SEED = 2**31
CUT_OFF_NOTICE = "Cut off at the token limit: raise “Max tokens” in the settings."
LABEL_CHARS = 70  # of a record's fields in the list
NOTICE_COLORS = {"error": "255, 43, 43", "warning": "255, 190, 0", "info": "28, 131, 225", "success": "33, 195, 84"}
STYLE = """<style>
    .notice { padding: .75rem 1rem; border-radius: .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
    .highlight pre { white-space: pre-wrap; overflow-wrap: anywhere; }
    .field-name { font-size: .875rem; margin-bottom: -.75rem; }
    [data-testid="stImage"] img { border: 1px solid rgba(128, 128, 128, .35); box-shadow: 0 1px 4px rgba(0, 0, 0, .2); }
</style>"""


@st.cache_resource(show_spinner="Loading the model ...")
def load_service() -> GenerationService:
    """Returns the running service. All visitors share it, and so its batches."""
    service = GenerationService(load_generator(), MAX_WAITING)
    service.start()
    return service


def sample_records(template: PromptTemplate) -> list[dict[str, Any]]:
    """Returns the package's sample records if the template has their fields."""
    if template != ReportPrompt():
        return []
    text = (files("typst_lit") / "data" / "samples" / "held_out.json").read_text("utf-8")
    return [pair["input"] for pair in json.loads(text)]


def notice(severity: Literal["error", "warning", "info", "success"], text: str) -> None:
    """Shows a message in a colored box, as text.

    Streamlit's own boxes render Markdown, which fetches images from the addresses in it. Messages quote records,
    documents and file names, so the page shows all messages by this function.
    """
    role = "alert" if severity == "error" else "status"
    text = html.escape(text.encode("utf-8", "replace").decode())
    background = f"background: rgba({NOTICE_COLORS[severity]}, .12)"
    st.html(f'<div class="notice {severity}" role="{role}" style="{background}">{text}</div>')


def uploaded_records(upload: Any, template: PromptTemplate) -> list[dict[str, Any]]:
    """Returns the valid records of an uploaded file, and shows the errors of the others."""
    key = upload.file_id, template
    if st.session_state.get("upload_key") != key:  # the script runs again with every click
        st.session_state.upload = read_upload(upload.name, upload.getvalue(), template)
        st.session_state.upload_key = key
    records, messages = st.session_state.upload
    for message in messages:
        notice("error", message)
    return records


def record_label(record: Mapping[str, Any], template: PromptTemplate) -> str:
    """Returns a record's label in the list: the beginning of its text, and its other fields."""
    paragraphs = str(record[template.body_field]).split("\n\n")[:2]
    others = [str(value)[:LABEL_CHARS] for name, value in record.items() if name != template.body_field]
    return ", ".join([" - ".join(paragraphs)[:LABEL_CHARS], *others])


def settings_panel(generator: Generator) -> dict[str, Any]:
    """Shows the settings in the sidebar and returns the chosen values by name."""
    values: dict[str, Any] = {}

    def slider(label: str, name: str, help: str | None = None) -> None:
        allowed, default = RANGES[name], float(getattr(defaults, name))
        minimum = allowed.minimum + (SLIDER_STEP if allowed.excludes_minimum else 0.0)
        assert allowed.maximum is not None
        values[name] = st.slider(label, min(minimum, default), float(allowed.maximum), default, SLIDER_STEP, help=help)

    def number_input(label: str, name: str, minimum: int, maximum: int, default: int, help: str) -> None:
        maximum = max(maximum, default)
        values[name] = min(maximum, st.number_input(label, minimum, maximum, default, help=help))

    with st.sidebar:
        st.header("Settings")
        if len(generator.adapters) > 1:
            values["adapter"] = st.selectbox("Adapter", generator.adapters)
        defaults = generator.settings_for(values.get("adapter"))
        slider("Temperature", "temperature", "0.1 to 0.3 keeps to the format; 0 always takes the most likely token.")
        slider("Top-p", "top_p", "Samples only among the most likely tokens that together have this probability.")
        top_k_help = "Samples only among this many most likely tokens; 0 for all."
        number_input("Top-k", "top_k", 0, MAX_TOP_K, defaults.top_k, top_k_help)
        slider("Repetition penalty", "repetition_penalty", "Above 1, tokens that were generated become less likely.")
        max_tokens = defaults.max_tokens
        number_input("Max tokens", "max_tokens", 1, max_tokens, max_tokens, "The document is cut off there.")
        number_input("Seed", "seed", 0, MAX_SEED, defaults.seed, "The same seed generates the same document.")
        if generator.typesetter is not None:
            attempts_help = "Maximum number, until the document is clean."
            number_input("Attempts", "attempts", 1, MAX_ATTEMPTS, generator.max_attempts, attempts_help)
    return values


def record_form(template: PromptTemplate, records: list[dict[str, Any]], origin: str) -> dict[str, Any] | None:
    """Shows a record's fields, filled from the selected record; returns them when "Generate" is pressed."""
    index = st.selectbox(
        "Record", range(len(records)), format_func=lambda i: record_label(records[i], template), key=origin
    )
    record = records[index] if index is not None else {}
    with st.form("record"):
        values: dict[str, Any] = {}
        for field in template.fields:
            title, value = field.name.replace("_", " ").capitalize(), record.get(field.name)
            st.html(f'<div class="field-name">{html.escape(title)}</div>')
            label = re.sub(r"\W+", " ", title)  # Streamlit takes it for Markdown; hidden, and read by screen readers
            # with a key of the record, so that selecting another one replaces what was typed
            options: dict[str, Any] = {"key": f"{origin} {index} {field.name}", "label_visibility": "collapsed"}
            if field.kind == "number" and int(value or 0) <= MAX_NUMBER:
                values[field.name] = st.number_input(label, 0, MAX_NUMBER, int(value or 0), **options)
            elif field.name == template.body_field:
                values[field.name] = st.text_area(label, str(value or ""), height=320, **options)
            else:
                values[field.name] = st.text_input(label, str(value or ""), **options)
        return values if st.form_submit_button("Generate", type="primary") else None


def generate_with_progress(service: GenerationService, attempts: Attempts, expected_chars: int) -> GeneratedDocument:
    """Generates a document, and shows its last lines and a progress bar meanwhile."""
    progress, preview = st.progress(0.0, "Reading the record ..."), st.empty()
    start = last_update = time.monotonic()

    def show_text(text: str) -> None:
        nonlocal last_update
        if time.monotonic() - last_update > SECONDS_BETWEEN_UPDATES:
            last_update = time.monotonic()
            caption = f"{len(text)} characters, {last_update - start:.0f} s"
            progress.progress(min(1.0, len(text) / expected_chars), caption)
            preview.code("\n".join(text.splitlines()[-NUM_PREVIEW_LINES:]), language=None)

    document = asyncio.run(service.generate(attempts, show_text))
    progress.empty()
    preview.empty()
    return document


def generate(service: GenerationService, fields: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Generates a record's document, and saves it with the images of its pages in the visitor's session."""
    generator = service.generator
    adapter = settings.get("adapter")
    record, errors = generator.check(fields, adapter)
    for error in errors:
        notice("error", error)
    if errors:
        return
    overrides = {name: value for name, value in settings.items() if name not in ("adapter", "attempts")}
    expected_chars = 2 * len(str(record[generator.encoder(adapter).template.body_field])) + 1
    try:
        attempts = generator.attempts(record, adapter, GenerationSettings(**overrides), settings.get("attempts"))
        document = generate_with_progress(service, attempts, expected_chars)
        images = generator.typesetter.compile(document.source, PPI).pages if generator.typesetter else ()
    except (UserError, QueueFullError, GenerationError, ServiceUnavailableError) as exception:
        notice("error", str(exception))
        return
    st.session_state.document = document
    st.session_state.page_images = images


def show_status(document: GeneratedDocument) -> None:
    """Shows whether a document is clean, or what is wrong with it, and what the compiler reported."""
    effort = f"{plural(document.tokens, 'token')} in {document.seconds:.1f} s"
    if document.attempts > 1:
        effort += f", {plural(document.attempts, 'attempt')}"
    result = document.result
    if result is None:
        notice("info", f"Not compiled: {effort}.")
    elif result.ok:
        fidelity = "" if document.fidelity is None else f", fidelity {document.fidelity:.3f}"
        verdict = {True: "Clean. ", False: "Not clean. ", None: ""}[document.clean]
        severity: Literal["warning", "success"] = "warning" if document.clean is False else "success"
        notice(severity, f"{verdict}Compiled: {plural(result.page_count, 'page')}, {effort}{fidelity}.")
    else:
        notice("error", f"Does not compile: {effort}.")
    if problems := _problems(document):
        notice("warning", "\n".join(problems))
    for diagnostic in result.diagnostics if result else ():
        notice(diagnostic.severity, str(diagnostic))
    if result and result.missing_assets:
        names = shorten(", ".join(result.missing_assets))
        notice("warning", f"Missing images, replaced by placeholders: {names}")
    show_text_differences(document)


def _problems(document: GeneratedDocument) -> list[str]:
    """Returns what is wrong with a document; the compiler's errors are shown as diagnostics."""
    if document.result is not None and not document.result.ok:
        return [CUT_OFF_NOTICE] if document.finish_reason == "length" else []
    return [
        CUT_OFF_NOTICE if problem == CUT_OFF else f"{problem[0].upper()}{problem[1:]}" for problem in document.problems
    ]


def show_text_differences(document: GeneratedDocument) -> None:
    """Shows all missing lines and invented words of a document that is not clean."""
    if document.clean is not False:
        return
    lists = {"Missing lines": document.missing_lines, "Invented words": document.invented_words}
    for title, texts in lists.items():
        if texts and len(texts) > 1:
            with st.expander(f"{title} ({len(texts)})"):
                notice("info", "\n".join(texts))


def show_downloads(document: GeneratedDocument) -> None:
    """Shows the buttons that download the source and the PDF."""
    name = file_name(0, document.input)
    left, right = st.columns(2)
    options: dict[str, Any] = {"on_click": "ignore"}  # a download does not run the script again
    left.download_button("Download .typ", document.source, name, "text/plain", **options)
    if document.result and document.result.ok:
        pdf_name = name.removesuffix(".typ") + ".pdf"
        right.download_button("Download PDF", document.result.pdf, pdf_name, "application/pdf", **options)


def show_document(document: GeneratedDocument, page_images: tuple[bytes, ...]) -> None:
    """Shows a document: its status, its files, its source, its pages."""
    show_status(document)
    show_downloads(document)
    source, pages = st.columns(2)
    with source, st.container(height=820):
        style = "github-dark" if st.context.theme.type == "dark" else "friendly"
        formatter = HtmlFormatter(style=style, nobackground=True)
        source_html = highlight(document.source, TypstLexer(), formatter)
        st.html(f"<style>{formatter.get_style_defs()}</style>{source_html}")
    with pages:
        for number, image in enumerate(page_images, 1):
            st.image(image, caption=f"Page {number}", width="stretch")


def main() -> None:
    """Shows the page."""
    st.set_page_config("typst_lit", layout="wide")
    st.html(STYLE)
    st.title("Typst documents from records")
    try:
        service = load_service()
    except UserError as error:
        notice("error", str(error))
        return
    generator = service.generator
    settings = settings_panel(generator)
    template = generator.encoder(settings.get("adapter")).template
    left, right = st.columns([2, 3])
    with left:
        upload = st.file_uploader("Records as JSON", type=["json", "jsonl"])
        records = uploaded_records(upload, template) if upload else sample_records(template)
        fields = record_form(template, records, upload.file_id if upload else "samples")
    with right:
        if fields is not None:
            st.session_state.pop("document", None)
            generate(service, fields, settings)
        if "document" in st.session_state:
            show_document(st.session_state.document, st.session_state.page_images)
        elif fields is None:
            notice("info", "Select a sample record, upload a JSON file, or fill in the fields; then press Generate.")


if __name__ == "__main__":
    main()
