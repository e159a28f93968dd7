"""The web page, in a real browser."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serving.test_app import GREEDY
from typst_lit.serving.uploads import MAX_ERRORS, MAX_RECORDS
from typst_lit.serving.web_page import MAX_UPLOAD_MB

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Values that the ranges of the input fields did not include
LARGE_SETTINGS = ["--seed", "3000000000", "--top-k", "2000", "--attempts", "20"]
# A document whose diagnostics, repairs and missing images have Markdown, and a form whose labels have
MARKDOWN_PAGE = """
from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import Field
from typst_lit.contract import TextContract, assess
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.serving.streamlit_app import notice, record_form, show_status
from typst_lit.typesetting.repairs import Repair
from typst_lit.typesetting.typesetter import Typesetter


class Template(PromptTemplate):
    fields = (Field("![l](BEACON/label) $x$ :red[b] https://example.org"), Field("<img src=BEACON/html>"))

    def render(self, fields):
        return ""


record = {field.name: "![v](BEACON/value)" for field in Template.fields}
with Typesetter(workers=1) as typesetter:
    for source in ('#panic("![d](BEACON/diagnostic) <img src=BEACON/tag> :material/home: :smile:")',
                   '#image("![m](BEACON/missing).png")\\n#link("x:![a](BEACON/link)")[x]'):
        result = typesetter.compile(source)
        repairs = (Repair(1, 1, "![r](BEACON/repair)"),)
        record["text"] = "![a](BEACON/line)\\n![b](BEACON/other)"
        contract = TextContract(1, "0.15.2", min_fidelity=1.0)
        assessment = assess(record, "text", result, contract, repairs)
        document = GeneratedDocument(record, source, "stop", repairs=repairs, result=result, assessment=assessment)
        show_status(document)
record_form(Template(), [record], "samples")
notice("info", "complete")
"""


@contextlib.contextmanager
def serve(log: Path, *command: str) -> Iterator[str]:
    """Runs a page on a free port, which is ``PORT`` in the command, and yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = (sys.executable, *(part.replace("PORT", port) for part in command))
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    for _ in range(600):
        time.sleep(0.1)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
            break
        except OSError:
            assert process.poll() is None, log.read_text()
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def address(contract_adapter, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("page") / "log.txt"
    arguments = ["--model", str(contract_adapter), "--port", "PORT", *map(str, GREEDY), *LARGE_SETTINGS]
    with serve(log, "-m", "typst_lit", "app", *arguments) as address:
        yield address
    assert "Traceback" not in log.read_text()  # Streamlit logs one when progress cannot be shown


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        if not CHROMIUM and not Path(playwright.chromium.executable_path).exists() and "CI" not in os.environ:
            pytest.skip("no browser is installed: .ci/browser installs one")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(address, browser) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1400, "height": 1100}, accept_downloads=True)
    page.goto(address)
    page.get_by_role("button", name="Generate").wait_for(timeout=120_000)
    yield page
    page.close()


def handshake(address: str, host: str) -> int:
    """Returns the status of opening the page's WebSocket under a host name."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    with contextlib.closing(connection):
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
        headers = {"Host": host, "Origin": f"http://{host}", "Connection": "Upgrade", "Upgrade": "websocket", **key}
        connection.request("GET", "/_stcore/stream", headers=headers)
        return connection.getresponse().status


def test_web_pages_of_other_sites_cannot_use_the_page(address) -> None:
    assert handshake(address, address.removeprefix("http://")) == 101
    assert handshake(address, address.removeprefix("http://").replace("127.0.0.1", "localhost")) == 101
    assert handshake(address, "rebound.example") == 403


@pytest.fixture
def beacon() -> Iterator[Any]:
    """A server that records the paths of the requests it receives, and its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    paths: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", paths=paths)
        server.shutdown()


def upload(page: Any, path: Path, *records: object) -> None:
    upload_bytes(page, path.name, json.dumps(records).encode())


def upload_bytes(page: Any, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "application/json", "buffer": content}
    page.locator("input[type=file]").set_input_files(file)


def test_a_record_becomes_a_document_with_pages_and_files(page, able_pairs, tmp_path) -> None:
    expect(page.get_by_label("Project title")).not_to_have_value("", timeout=30_000)  # the first sample is selected
    upload(page, tmp_path / "records.json", able_pairs[0], able_pairs[1]["input"])
    page.locator(f'input[value="{able_pairs[0]["input"]["project_title"]}"]').wait_for(timeout=30_000)
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Compiled: ").wait_for(timeout=120_000)
    page.get_by_text("Page 1", exact=True).wait_for(timeout=60_000)
    assert page.get_by_text(re.compile("^(Clean|Not clean)[.] Compiled: ")).count() == 1
    assert page.locator(".highlight span").count() > 50
    for name, beginning in (("Download PDF", b"%PDF"), ("Download .typ", b"#set page(")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        assert Path(download.value.path()).read_bytes().startswith(beginning)


def test_invalid_records_and_cut_off_documents_are_reported(page, able_pairs, tmp_path) -> None:
    record = able_pairs[2]["input"]
    upload(page, tmp_path / "records.json", {"input": record}, {**record, "starting_page": "one"})
    page.get_by_text("records.json, record 1 (line 1): field 'starting_page' must be a whole number").wait_for(
        timeout=30_000
    )
    page.locator(f'input[value="{record["project_title"]}"]').wait_for(timeout=30_000)
    page.get_by_label("Department").fill("")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("field 'department' is blank").wait_for(timeout=30_000)
    page.get_by_label("Department").fill(record["department"])
    page.get_by_label("Max tokens", exact=True).fill("20")
    page.get_by_label("Max tokens", exact=True).press("Enter")
    page.get_by_label("Attempts", exact=True).fill("1")
    page.get_by_label("Attempts", exact=True).press("Enter")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Cut off at the token limit").wait_for(timeout=60_000)
    assert page.get_by_text(re.compile("^(Not clean|Does not compile)")).count() == 1


def test_settings_beyond_the_ranges_of_the_fields_are_shown(page) -> None:
    for label, value in (("Seed", "3000000000"), ("Top-k", "2000"), ("Attempts", "20")):
        expect(page.get_by_label(label, exact=True)).to_have_value(value)
    assert page.get_by_test_id("stException").count() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "x.json, line 1: is not valid JSON"),
        (b'{"a":' * 100_000, "x.json: is not valid JSON"),
        (b'[{"title": "\xff"}]', "not UTF-8"),
        (b"\xff\xfe[", "is UTF-16 text"),
        (b"", "is empty"),
        (b"5", "at the top level"),
        (b'[{"\\ud800": 1}]', "field 'starting_page' is missing"),
        (b'{"starting_page": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    ],
    ids=["deep list", "deep objects", "not UTF-8", "UTF-16", "empty", "number", "half a surrogate", "long number"],
)
def test_uploads_that_are_not_records_are_reported(page, content, message) -> None:
    upload_bytes(page, "x.json", content)
    page.get_by_role("alert").filter(has_text=message).wait_for(timeout=30_000)
    assert page.get_by_test_id("stException").count() == 0


def test_a_number_beyond_those_of_browsers_is_shown_and_generated(page, able_pairs, tmp_path) -> None:
    upload(page, tmp_path / "records.json", {**able_pairs[0]["input"], "starting_page": 2**60})
    page.locator(f'input[value="{2**60}"]').wait_for(timeout=30_000)
    expect(page.get_by_label("Starting page")).to_have_count(1)
    page.get_by_label("Starting page").fill("minus one")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("field 'starting_page' must be a whole number").wait_for(timeout=30_000)


def test_large_uploads_are_refused_and_long_lists_are_cut(page, able_pairs, tmp_path) -> None:
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(MAX_UPLOAD_MB * 2**20 + 1)
    page.locator("input[type=file]").set_input_files(stream.name)
    page.get_by_text(f"File must be {MAX_UPLOAD_MB}").wait_for(timeout=30_000)
    record = able_pairs[0]["input"]
    upload(page, tmp_path / "many.json", *[record] * (MAX_RECORDS + 3), *[{}] * (MAX_ERRORS + 2))
    page.get_by_text(f"only the first {MAX_RECORDS} records are listed; 3 are left out").wait_for(timeout=30_000)
    page.get_by_text("many.json: 2 more invalid records").wait_for()
    assert page.locator(".notice.error").count() == MAX_ERRORS + 2


def test_markdown_of_uploads_is_shown_as_text(page, beacon) -> None:
    image = f"![x]({beacon.address}/IMAGE)"
    records = [{image.replace("IMAGE", "key"): 1}, {"input": {"starting_page": image.replace("IMAGE", "value")}}]
    records += [{f"<img src='{beacon.address}/tag'>": 1}]
    upload_bytes(page, "**name** :smile: ![f](x).json", json.dumps(records).encode())
    for text in (f"![x]({beacon.address}/key)", f"![x]({beacon.address}/value)", "<img src='", "**name** :smile: ![f]"):
        page.get_by_role("alert").filter(has_text=text).first.wait_for(timeout=30_000)
    page.wait_for_timeout(500)  # in which an image would be fetched
    assert beacon.paths == [] and page.get_by_role("alert").locator("img, strong, a").count() == 0


def test_markdown_of_documents_and_labels_is_shown_as_text(browser, beacon, tmp_path) -> None:
    script = tmp_path / "page.py"
    script.write_text(MARKDOWN_PAGE.replace("BEACON", beacon.address))
    options = ["--server.port", "PORT", "--server.headless", "true", "--browser.gatherUsageStats", "false"]
    with serve(tmp_path / "log.txt", "-m", "streamlit", "run", str(script), *options) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("complete", exact=True).wait_for(timeout=60_000)
        for name in ("diagnostic", "link", "repair", "label"):
            page.get_by_text(f"]({beacon.address}/{name})").first.wait_for()
        for text in ("/missing).png", ":material/home: :smile:", "$x$ :red[b] https://example.org"):
            page.get_by_text(text).first.wait_for()
        page.wait_for_timeout(500)  # in which an image would be fetched
        assert beacon.paths == []
        assert page.locator(f"[src*='{beacon.address}'], [href*='{beacon.address}'], .katex").count() == 0
        page.close()


FAILING_PAGE = """
from typst_lit.serving.web_page import serve_web_page

def load():
    raise RuntimeError("secret of /home/user")

serve_web_page(load, "127.0.0.1", PORT)
"""


def test_an_internal_error_is_logged_and_not_shown(browser, tmp_path) -> None:
    log = tmp_path / "log.txt"
    with serve(log, "-c", FAILING_PAGE) as address:
        page = browser.new_page()
        page.goto(address)
        error = page.get_by_test_id("stException")
        error.wait_for(timeout=60_000)
        page_text = page.locator("body").inner_text()
        page.close()
    assert "secret" in log.read_text()
    assert not any(part in page_text for part in ("secret", "Traceback", "RuntimeError", ".py"))


def test_invalid_arguments_are_reported_before_the_page_opens(run, tmp_path) -> None:
    for flags, message in (
        (["--temperature", 3], "--temperature: must be from 0 to 2"),
        (["--model", tmp_path], "contains no adapter"),
        (["--prt", 1], "Did you mean --port"),
        (["--seed", 2**53], "--seed: must be at most 9007199254740991 on the web page"),
        (["--max-tokens", 2**60], "--max-tokens: must be at most 9007199254740991 on the web page"),
        (["--port", 70000], "can't listen on 127.0.0.1, port 70000"),
        (["--host", "300.1.1.1"], "can't listen on 300.1.1.1"),
        (["--attempts", 2**60], "--attempts: must be at most 9007199254740991 on the web page"),
    ):
        result = run("app", *flags)
        assert result.status != 0 and message in result.err
