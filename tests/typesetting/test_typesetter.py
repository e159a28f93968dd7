from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from typst_lit.errors import UserError
from typst_lit.typesetting import process as process_module
from typst_lit.typesetting import typesetter as typesetter_module
from typst_lit.typesetting.typesetter import Typesetter
from typst_lit.typesetting.worker import Worker, WorkerSettings


@pytest.fixture(scope="module")
def typesetter() -> Iterator[Typesetter]:
    with Typesetter(workers=1) as typesetter:
        yield typesetter


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Returns the worker processes that were started since the test began."""

    def workers() -> list[psutil.Process]:
        running = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        return [child for child in running if "typst_lit.typesetting.worker" in child.cmdline()]

    before = workers()
    return lambda: [child for child in workers() if child not in before]


def test_a_result_has_pdf_text_and_images(typesetter) -> None:
    source = "#set page(header: [The header], footer: [Footer #context counter(page).display()])\n= Title\nText.\n"
    result = typesetter.compile(source + "#pagebreak()\nMore.", ppi=36)
    assert result.ok and result.pdf.startswith(b"%PDF") and result.error == "" and result.page_count == 2
    assert all(page.startswith(b"\x89PNG") for page in result.pages) and len(result.pages) == 2
    assert result.page_texts[0] == ("The header", "Title\nText.", "Footer 1")
    assert result.page_texts[1] == ("The header", "More.", "Footer 2")
    assert result.body == "Title\nText.\nMore." and "The header" in result.text
    assert 0 < result.seconds < 10


def test_the_samples_compile(pairs) -> None:
    with Typesetter() as typesetter:
        results = list(typesetter.compile_many(pair["output"] for pair in pairs))
    assert [result.error for result in results] == [""] * len(pairs)


def test_an_error_has_line_column_and_hint(typesetter) -> None:
    result = typesetter.compile("= Good\nÄ #let x = \n")
    assert not result.ok and result.pdf == b"" and result.page_count == 0
    (error,) = result.diagnostics
    assert (error.severity, error.message, error.line, error.column) == ("error", "expected expression", 2, 11)
    assert "if you meant to use subtraction" in typesetter.compile("#(a-b)").diagnostics[0].hint


def test_all_errors_are_reported_and_the_warnings_of_good_documents_too(typesetter) -> None:
    assert len(typesetter.compile("#(1 + )\n\n#(2 * )").diagnostics) == 2
    good = typesetter.compile('#set text(font: "No Such Font")\nHello')
    assert good.ok and [diagnostic.severity for diagnostic in good.diagnostics] == ["warning"]


# name: (source, alternatives of what the error must say)
HOSTILE = {
    "read absolute": ('#read("/etc/passwd")', "file not found"),
    "read parent": ('#read("../../../../etc/passwd")', "escape"),
    "read environment": ('#read("/proc/self/environ")', "file not found"),
    "read folder": ('#read(".")', "is a directory"),
    "image absolute": ('#image("/etc/passwd")', "file not found"),
    "include": ('#include "/etc/passwd"', "file not found"),
    "json": ('#json("/etc/passwd")', "file not found"),
    "read in eval": ('#eval("read(\\"/etc/passwd\\")")', "file not found"),
    "svg link": ("#image(bytes(\"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>\"))", "SVG"),
    "package": ('#import "@preview/cetz:0.3.0"', "packages can't be imported"),
    "local package": ('#import "@local/mine:0.1.0"', "packages can't be imported"),
    "endless for": ("#for i in range(100000) { for j in range(100000) { } }", "longer than"),
    "endless while": ("#let x = 1\n#while x > 0 { x += 1 }", "infinite"),
    "recursion": ("#let f(x) = f(x + 1)\n#f(1)", "depth exceeded"),
    "nested": ("$" + "sqrt(" * 5000 + ")" * 5000 + "$", "depth exceeded"),
    "unclosed": ("[" * 3_000_000, "nested too deeply|memory|longer than"),
    "array bomb": ("#let a = (0,)\n#for i in range(60) { a = a + a }", "memory|longer than"),
    "string bomb": ('#let s = "aaaaaaaa"\n#for i in range(60) { s = s + s }\n#s', "memory|longer than"),
    "repeat bomb": ('#("a" * 100000000000)', "memory|longer than"),
    "content bomb": ("#let c = [aaaa]\n#for i in range(40) { c = c + c }\n#c", "memory|longer than"),
    "long text": ("#lorem(100000000)", "longer than|memory"),
    "huge page": ("#set page(width: 100000pt, height: 100000pt)\nx", "max_page_pt"),
    "endless page": ("#set page(height: auto)\n#v(100000pt)\nx", "max_page_pt"),
    "ten thousand pages": ("#for i in range(10000) [x #pagebreak()]", "10001 pages"),
    "large source": ("word " * 2_000_000, "max_source_mib"),
    "not UTF-8": (b"\xff\xfe= A", "not valid Unicode"),
    "half a surrogate": ("\ud800", "not valid Unicode"),
    "panic": ('#panic("stop")', "panicked with: stop|stop"),
    "name too long": ('#image("' + "a" * 300 + '.png")', "name too long"),
    "file as folder": ('#image("a.png")\n#image("a.png/b.png")', "directory"),
    "too many files": ('#for i in range(1000) { image("p" + str(i) + ".png") }', "file not found: p200.png"),
}
# A WebAssembly module by hand: a memory, and a function `f` that loops forever.
WASM_LOOP = bytes.fromhex(
    "0061736d01000000" "0105016000017f" "03020100" "0503010001" "070e02066d656d6f727902000166" "0000"
    "0a0b010900" "03400c000b" "41000b"
)  # fmt: skip
HOSTILE["plugin"] = (f"#plugin(bytes(({', '.join(map(str, WASM_LOOP))}))).f()", "longer than")
HARMLESS = {
    "NUL": "a\0b",
    "NUL in code": '#let x = "\\u{0}"\n#x',
    "layout that never settles": '#let s = state("x", 0)\n#context s.update(s.final() + 1)\n#context s.final()',
    "show rule on itself": '#show "a": it => [a a]\na',
    "entity bomb": '#xml(bytes("<!DOCTYPE a [<!ENTITY b \\"aaaa\\"><!ENTITY c \\"&b;&b;&b;\\">]><a>&c;</a>"))\nx',
}


def test_hostile_documents_fail_in_time_and_affect_no_other() -> None:
    good = "= Still here"
    sources = [piece for source, _ in HOSTILE.values() for piece in (source, good)] + list(HARMLESS.values())
    with Typesetter(workers=2, timeout_s=3, memory_mib=1024) as typesetter:
        results = list(typesetter.compile_many(sources, ppi=36))
    hostile, others = results[: 2 * len(HOSTILE) : 2], results[1 : 2 * len(HOSTILE) : 2]
    assert all(result.ok for result in others)
    for (name, (_, errors)), result in zip(HOSTILE.items(), hostile, strict=True):
        assert not result.ok and result.pdf == b"" and result.pages == () and result.text == "", name
        assert any(part in result.error for part in errors.split("|")), (name, result.error)
        assert "root:" not in str(result.diagnostics), name
    for name, result in zip(HARMLESS, results[2 * len(HOSTILE) :], strict=True):
        assert result.ok, (name, result.error)
    assert max(result.seconds for result in results) < 3 + 1 + 2  # two more, because the start of a process counts here


def test_closing_leaves_neither_processes_nor_directories(children) -> None:
    before = set(Path(process_module.tempfile.gettempdir()).glob("typst-lit-*"))
    typesetter = Typesetter(workers=2)
    assert children() == []  # nothing starts before it is needed
    list(typesetter.compile_many(["= A", '#image("a/b.png")', "#for i in range(3) [x]"]))
    roots = set(Path(process_module.tempfile.gettempdir()).glob("typst-lit-*")) - before
    assert len(roots) == len(children()) > 0
    assert all([child.name for child in root.iterdir()] == [".packages"] for root in roots)
    typesetter.close()
    assert children() == [] and not any(root.exists() for root in roots)


def test_killing_processes_loses_no_document(children) -> None:
    sources = [f"= Document {number}\n#lorem(3000)" for number in range(60)]
    with Typesetter(workers=2) as typesetter:
        results = typesetter.compile_many(sources)
        completed = [next(results)]
        for number, result in enumerate(results):
            completed.append(result)
            if number in (5, 20, 40):
                for child in children():
                    child.send_signal(signal.SIGKILL)
    assert [result.text.split("\n")[0] for result in completed] == [f"Document {number}" for number in range(60)]


def test_a_process_is_replaced_after_its_maximum_number_of_documents(children, monkeypatch) -> None:
    monkeypatch.setattr(process_module, "MAX_COMPILES_PER_PROCESS", 2)
    with Typesetter(workers=1) as small:
        pids = []
        for _ in range(5):
            assert small.compile("= A").ok
            pids += [child.pid for child in children()]
    assert len(set(pids)) == 3


def test_workers_end_when_the_parent_is_killed(tmp_path) -> None:
    code = (
        "import time\nfrom typst_lit.typesetting.typesetter import Typesetter\n"
        "t = Typesetter(workers=1)\nt.compile('= A')\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    worker = psutil.Process(process.pid).children()[0]
    process.kill()
    process.wait()
    worker.wait(10)


def test_a_worker_has_neither_network_nor_environment(children, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Typesetter(workers=1) as typesetter:
        isolation = typesetter.isolation()
        (worker,) = children()
        assert "HF_TOKEN" not in worker.environ()
        if isolation["network"]:
            child, parent = (Path(f"/proc/{pid}/ns/net").readlink() for pid in (worker.pid, os.getpid()))
            assert child != parent
        assert isolation["memory"] or sys.platform != "linux"


def test_many_threads_share_a_typesetter(typesetter) -> None:
    texts: dict[int, str] = {}

    def work(number: int) -> None:
        texts[number] = typesetter.compile(f"Number {number}").text

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"Number {number}" for number in range(12)}


def test_compile_many_consumes_its_input_lazily() -> None:
    consumed = []

    def sources() -> Iterator[str]:
        for number in range(1000):
            consumed.append(number)
            yield f"Number {number}"

    with Typesetter(workers=1) as typesetter:
        results = typesetter.compile_many(sources())
        assert next(results).text == "Number 0" and len(consumed) < 10
        results.close()


# Files


def test_missing_images_are_replaced_by_placeholders(typesetter) -> None:
    names = ["a.png", "images/b(2).jpg", "c/d/e.svg", "f.gif", "g.webp", "h.jpeg", "i.pdf", "ü x.png"]
    source = "\n".join(f'#image("{name}", width: 4cm)' for name in names)
    result = typesetter.compile(source)
    assert result.ok and result.missing_assets == tuple(names), result.error
    assert typesetter.compile("= No image").missing_assets == ()


def test_other_missing_files_are_an_error(typesetter) -> None:
    result = typesetter.compile('#bibliography("refs.bib")')
    assert not result.ok and "file not found: refs.bib" in result.error and "assets_dir" in result.error


def test_documents_read_files_in_the_assets_directory_and_none_outside(tmp_path) -> None:
    from PIL import Image

    folder = tmp_path / "assets"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (10, 10), "#ff0000").save(folder / "images" / "red.png")
    (folder / "style.typ").write_text("#let title = [From the house style]")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "away").symlink_to(tmp_path)
    with Typesetter(workers=1, assets_dir=str(folder)) as typesetter:
        result = typesetter.compile(
            '#import "style.typ": title\n#title\n#image("images/red.png")#image("no.png")', ppi=72
        )
        assert result.ok and result.missing_assets == ("no.png",) and "From the house style" in result.text
        for path in ("link.txt", "away/secret.txt", "/../secret.txt", "away"):
            assert not typesetter.compile(f'#read("{path}")').ok
    import io

    colors = Image.open(io.BytesIO(result.pages[0])).convert("RGB").getcolors(100_000)
    assert colors and any(color == (255, 0, 0) for _, color in colors)


@pytest.mark.parametrize("literal", [r"images\b.png", r"images\\b.png"])
def test_a_backslash_in_a_path_is_reported_or_normalized(typesetter, literal) -> None:
    source = f'= A\nText #image("{literal}") and #image("other.png")'
    refused = typesetter.compile(source)
    assert "backslash" in refused.error and refused.diagnostics[0].line == 2
    with Typesetter(workers=1, normalize_paths=True) as normalizing:
        result = normalizing.compile(source)
    assert result.ok and result.missing_assets == ("images/b.png", "other.png")
    assert result.source == source.replace(literal, "images/b.png") and "images/b.png" in str(result.diagnostics[0])


def test_missing_fonts_are_logged_once() -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    typesetter_module.log.addHandler(handler)
    with Typesetter(workers=1) as typesetter:
        for _ in range(3):
            typesetter.compile('#set text(font: "No Such Font")\nHello')
        typesetter.compile('#set text(font: ("Another One", "No Such Font"))\nHello')
    typesetter_module.log.removeHandler(handler)
    assert len(messages) == 2 and "no such font" in messages[0] and "another one" in messages[1]


def test_font_paths_are_searched(tmp_path, typesetter) -> None:
    import shutil

    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shutil.copy(fonts / "cmtt10.ttf", tmp_path)
    source = '#set text(font: "cmtt10")\nHello'
    assert typesetter.compile(source).diagnostics
    with Typesetter(workers=1, font_paths=[str(tmp_path)]) as with_fonts:
        assert with_fonts.compile(source).diagnostics == ()


def test_an_error_in_an_imported_file_names_the_file(tmp_path) -> None:
    (tmp_path / "style.typ").write_text("\n" * 6 + '#image("images\\a.png")')
    with Typesetter(workers=1, assets_dir=str(tmp_path), normalize_paths=True) as typesetter:
        result = typesetter.compile('#include "style.typ"')
    (error,) = result.diagnostics
    assert "backslash" in error.message and error.line == 7 and error.file.endswith("style.typ")


def test_paths_are_normalized_after_any_line_ending() -> None:
    source = '= A\u2028B\rC #image("images\\a.png")'
    with Typesetter(workers=1, normalize_paths=True) as typesetter:
        assert typesetter.compile(source).source == source.replace("\\", "/")


def test_assets_are_not_imported_as_modules(tmp_path) -> None:
    (tmp_path / "pypdfium2.py").write_text("raise SystemExit('run')")
    with Typesetter(workers=1, assets_dir=str(tmp_path)) as typesetter:
        assert typesetter.compile('#read("/pypdfium2.py")').ok


def test_messages_contain_no_terminal_control_characters(typesetter) -> None:
    assert "\x1b" not in typesetter.compile('#panic("\\u{1b}[31mred")').error


def test_an_interrupted_compilation_does_not_answer_the_next_one() -> None:
    with Typesetter(workers=1) as typesetter:
        typesetter.compile("= Start")
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            typesetter.compile("#for i in range(100000) { for j in range(100000) { } }")
        assert typesetter.compile("= Second").text == "Second"


def test_memory_used_by_earlier_documents_does_not_fail_the_next() -> None:
    sources = ["#lorem(200000)" if number % 2 else f"Number {number}" for number in range(12)]
    separately = []
    for source in sources:
        with Typesetter(workers=1, memory_mib=640, max_pages=2000) as typesetter:
            separately.append(typesetter.compile(source).ok)
    with Typesetter(workers=1, memory_mib=640, max_pages=2000) as typesetter:
        assert [result.ok for result in typesetter.compile_many(sources)] == separately


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", 0), ("memory_mib", 1), ("memory_mib", 1 << 60), ("workers", 0), ("assets_dir", "/no/such"),
        ("font_paths", ["/no"]), ("font_paths", "/no"),
    ],
)  # fmt: skip
def test_invalid_settings_are_named(name, value) -> None:
    with pytest.raises(UserError) as error:
        Typesetter(**{name: value})
    assert error.value.setting == f"typesetting.{name}"


def test_the_image_of_a_large_page_is_scaled_down(typesetter) -> None:
    import io

    from PIL import Image

    result = typesetter.compile("#set page(width: 4900pt, height: 4900pt)\nx", ppi=300)
    width, height = Image.open(io.BytesIO(result.pages[0])).size
    assert result.ok and 24e6 < width * height < 26e6


def test_a_panic_of_the_compiler_fails_the_document_and_restarts_the_process(tmp_path) -> None:
    """No document is known that makes this compiler panic, so the test raises the exception of one."""

    class PanicError(BaseException):
        pass

    class Broken:
        def compile_with_warnings(self, source: bytes) -> None:
            raise PanicError("index out of bounds")

    worker = Worker(WorkerSettings(root=str(tmp_path)))
    worker.compiler = Broken()  # type: ignore[assignment]
    answer = worker.compile(b"= A", None)
    assert not answer["ok"] and answer["needs_restart"] and "index out of bounds" in answer["diagnostics"][0].message


def test_real_reports_compile() -> None:
    """Needs real reports: TYPST_LIT_REPORTS=pairs.json"""
    path = os.environ.get("TYPST_LIT_REPORTS")
    if not path:
        pytest.skip("TYPST_LIT_REPORTS is not set to a file of real pairs")
    sources = [pair["output"] for pair in json.loads(Path(path).read_text("utf-8"))]
    with Typesetter(normalize_paths=True) as typesetter:
        results = list(typesetter.compile_many(sources))
    assert [result.error for result in results if not result.ok] == []


@pytest.mark.slow
def test_random_kills_lose_and_repeat_no_document(children) -> None:
    rng = random.Random(0)
    finished, killed_pids = threading.Event(), []

    def kill() -> None:
        while not finished.wait(rng.uniform(0, 1)):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                child = rng.choice(children())
                # Some are killed while they start, but not all, or nothing would ever be compiled.
                if time.time() - child.create_time() > rng.uniform(0, 2):
                    child.send_signal(signal.SIGKILL)
                    killed_pids.append(child.pid)

    with Typesetter(workers=2) as typesetter:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        sources = (f"= Document {number}\n#lorem(2000)" for number in range(2000))
        titles = [result.text.split("\n")[0] for result in typesetter.compile_many(sources)]
        finished.set()
        killer.join()
    assert titles == [f"Document {number}" for number in range(2000)]
    print(f"{len(killed_pids)} workers were killed")
    assert len(killed_pids) > 20
