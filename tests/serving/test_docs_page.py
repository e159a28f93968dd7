"""The page /docs, in a real browser, which must load nothing from other servers."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serving.test_recovery import serve
from typst_lit.inference.generator import Generator
from typst_lit.inference.settings import GenerationSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "secret"


def test_docs_describe_all_routes_and_send_requests_without_the_internet(tmp_path) -> None:
    settings = GenerationSettings(max_tokens=5, temperature=0)
    generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False, settings=settings)
    with serve(generator, token=TOKEN, allowed_hosts=[]) as url, sync_playwright() as playwright:
        if not CHROMIUM and not Path(playwright.chromium.executable_path).exists() and "CI" not in os.environ:
            pytest.skip("no browser is installed: .ci/browser installs one")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1500})
        requested, errors = list[str](), list[str]()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{url}/docs")
        for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"):
            expect(page.get_by_text(path, exact=True)).to_be_visible()
        for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
            page.get_by_text(path, exact=True).click()
            form = page.locator(f'form[data-path="{path}"]')
            page.get_by_label("Token").fill("wrong")
            form.get_by_role("button", name="Send").click()
            expect(form).to_contain_text("Status 401")
            page.get_by_label("Token").fill(TOKEN)
            form.get_by_role("button", name="Send").click()
            expect(form).to_contain_text("Status 200", timeout=60_000)
            expect(form).to_contain_text(re.compile(r'"(tokens|completion_tokens)": 5'))
        expect(page.get_by_text("repetition_penalty").first).to_be_visible()
        page.screenshot(path=tmp_path / "docs.png", full_page=True)
        browser.close()
    assert {request.split("/")[2] for request in requested if not request.startswith("data:")} == {url.split("/")[2]}
    assert all("401" in error for error in errors)
