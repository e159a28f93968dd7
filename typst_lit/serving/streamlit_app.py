"""The web page, a Streamlit script that `typst-lit app` runs: the record on the left, its document on the right."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import streamlit as st
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TypstLexer

from typst_lit.cli.app import parser
from typst_lit.cli.generate import load
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.inference.outputs import file_name
from typst_lit.serving.service import QueueFullError, Service

PPI = 110.0
WAITING = 16  # documents of other visitors that may wait
SECONDS_BETWEEN_VIEWS = 0.25


@st.cache_resource(show_spinner="Loading the model ...")
def service_of(arguments: tuple[str, ...]) -> Service:
    """Returns the running service: one for all visitors, so that they share batches."""
    made = parser()
    service = Service(load(made.instantiate_classes(made.parse_args(list(arguments)))), WAITING)
    service.start()
    return service


def sample_records(template: PromptTemplate) -> list[dict[str, Any]]:
    """Returns the records that come with the package, where the template has their fields."""
    if template != ReportPrompt():
        return []
    text = (files("typst_lit") / "data" / "samples" / "held_out.json").read_text("utf-8")
    return [pair["input"] for pair in json.loads(text)]


def uploaded_records(upload: Any, generator: Generator, adapter: str | None) -> list[dict[str, Any]]:
    """Returns the good records of an uploaded file, and tells what is wrong with the others."""
    try:
        value = json.loads(upload.getvalue().decode("utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        st.error(f"{upload.name}: is no JSON file ({error}).")
        return []
    found = []
    for place, record in enumerate(value if isinstance(value, list) else [value]):
        fields, faults = generator.check(record, adapter)
        if faults:
            st.error(f"{upload.name}, record {place}: {'; '.join(faults)}")
        else:
            found.append(fields)
    return found


def label(record: Mapping[str, Any], template: PromptTemplate) -> str:
    """Returns what a record is called in a list: the beginning of its text, and its other fields."""
    beginning = str(record[template.body_field]).split("\n\n")[:2]
    others = [str(value) for name, value in record.items() if name != template.body_field]
    return ", ".join([" - ".join(beginning)[:70], *others])


def settings_panel(generator: Generator) -> dict[str, Any]:
    """Shows the settings and returns them."""
    usual = generator.settings
    with st.sidebar:
        st.header("Settings")
        chosen: dict[str, Any] = {}
        if len(generator.adapters) > 1:
            chosen["adapter"] = st.selectbox("Adapter", generator.adapters)
        chosen["temperature"] = st.slider(
            "Temperature", 0.0, 2.0, usual.temperature, 0.05, help="0.1 to 0.3 keeps to the format; 0 is greedy."
        )
        chosen["top_p"] = st.slider("Top-p", 0.05, 1.0, usual.top_p, 0.05)
        chosen["top_k"] = st.number_input("Top-k", 0, 1000, usual.top_k, help="0 for all tokens.")
        chosen["repetition_penalty"] = st.slider("Repetition penalty", 1.0, 2.0, usual.repetition_penalty, 0.05)
        chosen["max_tokens"] = st.number_input("Most tokens", 1, usual.max_tokens, usual.max_tokens)
        chosen["seed"] = st.number_input("Seed", 0, 2**31, usual.seed)
        if generator.typesetter is not None:
            chosen["attempts"] = st.number_input(
                "Attempts", 1, 16, generator.attempts, help="Until a document compiles."
            )
    return chosen


def record_form(template: PromptTemplate, records: list[dict[str, Any]], origin: str) -> dict[str, Any] | None:
    """Shows a record's fields, filled from the one that is chosen; returns them when a document is wanted."""
    place = st.selectbox("Record", range(len(records)), format_func=lambda n: label(records[n], template), key=origin)
    chosen = records[place] if place is not None else {}
    with st.form("record"):
        values: dict[str, Any] = {}
        for field in template.fields:
            title, given = field.name.replace("_", " ").capitalize(), chosen.get(field.name)
            key = f"{origin} {place} {field.name}"  # another record fills the fields anew
            if field.kind == "number":
                values[field.name] = st.number_input(title, value=int(given or 0), key=key)
            elif field.name == template.body_field:
                values[field.name] = st.text_area(title, str(given or ""), height=320, key=key)
            else:
                values[field.name] = st.text_input(title, str(given or ""), key=key)
        return values if st.form_submit_button("Generate", type="primary") else None


def generate(service: Service, attempts: Attempts, adapter: str | None, expected: int) -> GeneratedDocument:
    """Generates a document and shows how far it is; about so many characters are expected."""
    progress, written = st.progress(0.0, "Reading the record ..."), st.empty()
    began = last = time.monotonic()

    def view(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_VIEWS:
            last = time.monotonic()
            progress.progress(min(1.0, len(text) / expected), f"{len(text)} characters, {last - began:.0f} s")
            written.code("\n".join(text.splitlines()[-12:]), language=None)

    document = asyncio.run(service.document(attempts, adapter, view))
    progress.empty()
    written.empty()
    return document


def answer(service: Service, fields: Mapping[str, Any], chosen: dict[str, Any]) -> None:
    """Generates the document of a record that was sent, and keeps it with the pictures of its pages."""
    generator = service.generator
    adapter = chosen.pop("adapter", None) or next(iter(generator.encoders))
    record, faults = generator.check(fields, adapter)
    for fault in faults:
        st.error(fault)
    if faults:
        return
    body = str(record[generator.encoder(adapter).template.body_field])
    try:
        document = generate(service, generator.attempt(record, adapter, **chosen), adapter, 2 * len(body) + 1)
    except (UserError, QueueFullError) as error:
        st.error(str(error))
        return
    pictures = generator.typesetter.compile(document.source, PPI).pages if generator.typesetter else ()
    st.session_state.made = document, pictures


def show(document: GeneratedDocument, pictures: tuple[bytes, ...]) -> None:
    """Shows a document: what it is, its source, its pages, its files."""
    made = f"{document.tokens} tokens in {document.seconds:.1f} s"
    result = document.result
    if result is None:
        st.info(f"{made}; not compiled.")
    elif result.ok:
        st.success(f"It compiles: pages {result.page_count}, {made}, fidelity {document.fidelity or 0:.3f}.")
    else:
        st.error(f"It does not compile: {made}, attempts {document.attempts}.")
    if document.finish_reason == "length":
        st.warning("It was cut off at the token limit: raise it in the settings.")
    for repair in document.repairs:
        st.info(f"Mended: {repair}")
    for each in result.diagnostics if result else ():
        (st.error if each.severity == "error" else st.warning)(str(each))
    if result and result.missing_assets:
        st.warning(f"Pictures that are not there have a stand-in: {', '.join(result.missing_assets)}")
    name = file_name(0, document.input)
    left, right = st.columns(2)
    options: dict[str, Any] = {"on_click": "ignore"}  # a download leaves the page as it is
    left.download_button("Download .typ", document.source, name, "text/plain", **options)
    if result and result.ok:
        right.download_button(
            "Download PDF", result.pdf, name.removesuffix(".typ") + ".pdf", "application/pdf", **options
        )
    source, pages = st.columns(2)
    with source, st.container(height=820):
        colours = HtmlFormatter(style="friendly", nobackground=True)
        st.html(f"<style>{colours.get_style_defs()}</style>{highlight(document.source, TypstLexer(), colours)}")
    with pages:
        for number, picture in enumerate(pictures, 1):
            st.image(picture, caption=f"Page {number}", width="stretch")


def main(arguments: tuple[str, ...]) -> None:
    """Shows the page."""
    st.set_page_config("typst_lit", layout="wide")
    st.title("Typst documents from records")
    try:
        service = service_of(arguments)
    except UserError as error:
        st.error(str(error))
        return
    generator = service.generator
    chosen = settings_panel(generator)
    template = generator.encoder(chosen.get("adapter")).template
    left, right = st.columns([2, 3])
    with left:
        upload = st.file_uploader("Records as JSON", type="json")
        records = uploaded_records(upload, generator, chosen.get("adapter")) if upload else sample_records(template)
        fields = record_form(template, records, upload.file_id if upload else "samples")
    with right:
        if fields is not None:
            st.session_state.pop("made", None)
            answer(service, fields, chosen)
        if "made" in st.session_state:
            show(*st.session_state.made)
        elif fields is None:
            st.info("Choose a sample record, upload a JSON file, or fill in the fields; then press Generate.")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
