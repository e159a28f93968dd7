"""The web page, a Streamlit script: a record on the left, its document on the right. `typst-lit app` runs it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

import streamlit as st
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TypstLexer

from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.inference.outputs import file_name
from typst_lit.inference.sampling import RANGES
from typst_lit.serving.service import MAX_ATTEMPTS, GenerationError, GenerationService, QueueFullError
from typst_lit.serving.web_page import load_generator

PPI = 110.0  # of the page images
MAX_WAITING = 16  # documents of all visitors
SECONDS_BETWEEN_UPDATES = 0.25
NUM_PREVIEW_LINES = 12
SLIDER_STEP = 0.05
MAX_TOP_K = 1000  # of the input field, as that of the seed
MAX_SEED = 2**31


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


def uploaded_records(upload: Any, generator: Generator, adapter: str | None) -> list[dict[str, Any]]:
    """Returns the valid records of an uploaded file, and shows the errors of the others."""
    try:
        value = json.loads(upload.getvalue().decode("utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        st.error(f"{upload.name} is not a JSON file: {error}.")
        return []
    records = []
    for index, record in enumerate(value if isinstance(value, list) else [value]):
        fields, errors = generator.check(record, adapter)
        if errors:
            st.error(f"{upload.name}, record {index}: {'; '.join(errors)}")
        else:
            records.append(fields)
    return records


def record_label(record: Mapping[str, Any], template: PromptTemplate) -> str:
    """Returns a record's label in the list: the beginning of its text, and its other fields."""
    paragraphs = str(record[template.body_field]).split("\n\n")[:2]
    others = [str(value) for name, value in record.items() if name != template.body_field]
    return ", ".join([" - ".join(paragraphs)[:70], *others])


def settings_panel(generator: Generator) -> dict[str, Any]:
    """Shows the settings in the sidebar and returns the chosen values by name."""
    defaults = generator.settings
    values: dict[str, Any] = {}

    def slider(label: str, name: str, help: str | None = None) -> None:
        allowed, default = RANGES[name], float(getattr(defaults, name))
        minimum = allowed.minimum + (SLIDER_STEP if allowed.excludes_minimum else 0.0)
        assert allowed.maximum is not None
        values[name] = st.slider(label, min(minimum, default), float(allowed.maximum), default, SLIDER_STEP, help=help)

    def number_input(label: str, name: str, maximum: int, help: str | None = None) -> None:
        values[name] = st.number_input(label, RANGES[name].minimum, maximum, getattr(defaults, name), help=help)

    with st.sidebar:
        st.header("Settings")
        if len(generator.adapters) > 1:
            values["adapter"] = st.selectbox("Adapter", generator.adapters)
        slider("Temperature", "temperature", "0.1 to 0.3 keeps to the format; 0 always takes the most likely token.")
        slider("Top-p", "top_p", "Samples only among the most likely tokens that together have this probability.")
        number_input("Top-k", "top_k", MAX_TOP_K, "Samples only among this many most likely tokens; 0 for all.")
        slider("Repetition penalty", "repetition_penalty", "Above 1, tokens that were generated become less likely.")
        number_input("Max tokens", "max_tokens", defaults.max_tokens, "The document is cut off there.")
        number_input("Seed", "seed", MAX_SEED, "The same seed generates the same document.")
        if generator.typesetter is not None:
            values["attempts"] = st.number_input(
                "Attempts", 1, MAX_ATTEMPTS, generator.max_attempts, help="Maximum number, until the document compiles."
            )
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
            key = f"{origin} {index} {field.name}"  # so that selecting another record replaces what was typed
            if field.kind == "number":
                values[field.name] = st.number_input(title, value=int(value or 0), key=key)
            elif field.name == template.body_field:
                values[field.name] = st.text_area(title, str(value or ""), height=320, key=key)
            else:
                values[field.name] = st.text_input(title, str(value or ""), key=key)
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
        st.error(error)
    if errors:
        return
    overrides = {name: value for name, value in settings.items() if name not in ("adapter", "attempts")}
    expected_chars = 2 * len(str(record[generator.encoder(adapter).template.body_field])) + 1
    try:
        attempts = generator.attempts(
            record, adapter, replace(generator.settings, **overrides), settings.get("attempts")
        )
        document = generate_with_progress(service, attempts, expected_chars)
    except (UserError, QueueFullError, GenerationError) as exception:
        st.error(str(exception))
        return
    st.session_state.document = document
    st.session_state.page_images = (
        generator.typesetter.compile(document.source, PPI).pages if generator.typesetter else ()
    )


def show_status(document: GeneratedDocument) -> None:
    """Shows whether a document compiles, and what was repaired, replaced or reported."""
    effort = f"{document.tokens} tokens in {document.seconds:.1f} s"
    result = document.result
    if result is None:
        st.info(f"Not compiled: {effort}.")
    elif result.ok:
        pages = f"{result.page_count} page{'s' * (result.page_count != 1)}"
        st.success(f"Compiled: {pages}, {effort}, fidelity {document.fidelity or 0:.3f}.")
    else:
        attempts = f"{document.attempts} attempt{'s' * (document.attempts != 1)}"
        st.error(f"Does not compile: {effort}, {attempts}.")
    if document.finish_reason == "length":
        st.warning("Cut off at the token limit: raise “Max tokens” in the settings.")
    for repair in document.repairs:
        st.info(f"Repaired: {repair}")
    for diagnostic in result.diagnostics if result else ():
        (st.error if diagnostic.severity == "error" else st.warning)(str(diagnostic))
    if result and result.missing_assets:
        st.warning(f"Missing images, replaced by placeholders: {', '.join(result.missing_assets)}")


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
        formatter = HtmlFormatter(style="friendly", nobackground=True)
        html = highlight(document.source, TypstLexer(), formatter)
        st.html(f"<style>{formatter.get_style_defs()}</style>{html}")
    with pages:
        for number, image in enumerate(page_images, 1):
            st.image(image, caption=f"Page {number}", width="stretch")


def main() -> None:
    """Shows the page."""
    st.set_page_config("typst_lit", layout="wide")
    st.title("Typst documents from records")
    try:
        service = load_service()
    except UserError as error:
        st.error(str(error))
        return
    generator = service.generator
    settings = settings_panel(generator)
    template = generator.encoder(settings.get("adapter")).template
    left, right = st.columns([2, 3])
    with left:
        upload = st.file_uploader("Records as JSON", type="json")
        records = uploaded_records(upload, generator, settings.get("adapter")) if upload else sample_records(template)
        fields = record_form(template, records, upload.file_id if upload else "samples")
    with right:
        if fields is not None:
            st.session_state.pop("document", None)
            generate(service, fields, settings)
        if "document" in st.session_state:
            show_document(st.session_state.document, st.session_state.page_images)
        elif fields is None:
            st.info("Select a sample record, upload a JSON file, or fill in the fields; then press Generate.")


if __name__ == "__main__":
    main()
