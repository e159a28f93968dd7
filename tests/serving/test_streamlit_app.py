"""The web page, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serving.test_app import GREEDY

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def address(able_adapter, tmp_path_factory) -> Iterator[str]:
    errors = tmp_path_factory.mktemp("page") / "errors.txt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "typst_lit", "app", "--model", able_adapter, "--port", str(port), *GREEDY]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors.open("w"))
    for _ in range(600):
        time.sleep(0.1)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
            break
        except OSError:
            assert process.poll() is None, "Streamlit has stopped"
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=30)
    assert "Traceback" not in errors.read_text()  # Streamlit logs one when progress cannot be shown


@pytest.fixture
def page(address) -> Iterator[Any]:
    with sync_playwright() as playwright:
        if not CHROMIUM and not Path(playwright.chromium.executable_path).exists() and "CI" not in os.environ:
            pytest.skip("no browser is installed: .ci/browser installs one")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100}, accept_downloads=True)
        page.goto(address)
        page.get_by_role("button", name="Generate").wait_for(timeout=120_000)
        yield page
        browser.close()


def upload(page: Any, path: Path, *records: object) -> None:
    path.write_text(json.dumps(records))
    page.locator("input[type=file]").set_input_files(path)


def test_a_record_becomes_a_document_with_pages_and_files(page, able_pairs, tmp_path) -> None:
    expect(page.get_by_label("Project title")).not_to_have_value("", timeout=30_000)  # the first sample is selected
    upload(page, tmp_path / "records.json", able_pairs[0], able_pairs[1]["input"])
    page.locator(f'input[value="{able_pairs[0]["input"]["project_title"]}"]').wait_for(timeout=30_000)
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Compiled: ").wait_for(timeout=120_000)
    page.get_by_text("Page 1", exact=True).wait_for(timeout=60_000)
    assert page.locator(".highlight span").count() > 50
    for name, beginning in (("Download PDF", b"%PDF"), ("Download .typ", b"#set page(")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        assert Path(download.value.path()).read_bytes().startswith(beginning)


def test_invalid_records_and_cut_off_documents_are_reported(page, able_pairs, tmp_path) -> None:
    record = able_pairs[2]["input"]
    upload(page, tmp_path / "records.json", {"input": record}, {**record, "starting_page": "one"})
    page.get_by_text("record 1: field 'starting_page' must be a whole number").wait_for(timeout=30_000)
    page.locator(f'input[value="{record["project_title"]}"]').wait_for(timeout=30_000)
    page.get_by_label("Department").fill("")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("field 'department' is blank").wait_for(timeout=30_000)
    page.get_by_label("Department").fill(record["department"])
    page.get_by_label("Max tokens", exact=True).fill("20")
    page.get_by_label("Max tokens", exact=True).press("Enter")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Cut off at the token limit").wait_for(timeout=60_000)


def test_invalid_arguments_are_reported_before_the_page_opens(run, tmp_path) -> None:
    for flags, message in (
        (["--temperature", 3], "--temperature: must be from 0 to 2"),
        (["--model", tmp_path], "contains no adapter"),
        (["--prt", 1], "Did you mean --port"),
    ):
        result = run("app", *flags)
        assert result.status != 0 and message in result.err
