"""The status page in a real browser: how it looks, that it lives, and that everyone can use it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import Chromium, Scheme
from tests.support.daemon import Daemon, wait_for
from tests.support.history import History
from tests.support.models import make_base, make_checkpoint
from tests.support.wire import Daemons

SCHEMES: tuple[Scheme, ...] = ("light", "dark")
PAGES = ("/", "/versions/4", "/versions/99")
LAYERS = 48


def assert_quiet(browser: Chromium, daemon: Daemon) -> None:
    """Nothing was complained of, and nothing asked of others."""
    assert browser.complaints() == []
    assert browser.hosts() == {daemon.http.removeprefix("http://")}


def is_live(browser: Chromium) -> bool:
    return bool(browser.run("return document.documentElement.dataset.connection === 'live'"))


@pytest.mark.parametrize("width", [1280, 390, 360])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_looks(browser: Chromium, daemon: Daemon, pictures: Path, scheme: Scheme, width: int) -> None:
    for page in PAGES[:2]:
        browser.open(daemon.http + page, width=width, scheme=scheme)
        browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
        assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0, page
        browser.picture(pictures / f"{scheme}-{width}-{page.strip('/').replace('/', '-') or 'overview'}.png")
    light, dark = browser.run(
        "return ['light', 'dark'].map(name => matchMedia(`(prefers-color-scheme: ${name})`).matches)"
    )
    assert (light, dark) == (scheme == "light", scheme == "dark")
    assert_quiet(browser, daemon)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("page", PAGES)
def test_everyone_can_use_it(browser: Chromium, daemon: Daemon, axe: str, page: str, scheme: Scheme) -> None:
    browser.open(daemon.http + page, scheme=scheme, width=1280 if scheme == "light" else 390)
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})
    found = browser.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    grave = [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert grave == []
    assert len(found["passes"]) > 10, "axe looked"


def test_without_scripts(browser: Chromium, daemon: Daemon) -> None:
    for page, words in zip(
        PAGES, (["v4", "task4", "stable"], ["Layer by layer", "task4"], ["no version"]), strict=True
    ):
        browser.open(daemon.http + page, scripts=False)
        assert all(word in browser.text() for word in words), page
    assert not is_live(browser)


def test_by_keyboard(browser: Chromium, daemon: Daemon) -> None:
    browser.open(f"{daemon.http}/")
    wait_for(lambda: is_live(browser), "the events")
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    browser.press(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    stops = []
    for _ in range(100):
        browser.press(Keys.TAB)
        stop = browser.run(
            "const at = document.activeElement, box = at.getBoundingClientRect();"
            "return [at.tagName, at.id || at.getAttribute('aria-label') || at.textContent.trim(),"
            " getComputedStyle(at).outlineStyle, box.top >= -1 && box.bottom <= innerHeight + 1 || box.height > 400]"
        )
        if stop[0] == "BODY":
            break
        stops.append(stop)
    assert all(outline != "none" and in_sight for _, _, outline, in_sight in stops), stops
    names = [name for _, name, _, _ in stops]
    assert {"head", "alias-stable", "v4", "v1", "alike-table", "alike-matrix"} <= {*names}
    assert len(names) < 60, "it has an end"


def test_what_is_replaced_keeps_the_focus(browser: Chromium, daemon: Daemon) -> None:
    browser.open(f"{daemon.http}/")
    wait_for(lambda: is_live(browser), "the events")
    for name in ("v4", "alike-table", "alike-matrix"):
        kept = browser.run(
            "const at = document.getElementById(arguments[0]), part = at.closest('[data-live]'); at.focus();"
            "put(part.dataset.live, part.innerHTML);"
            "return [at.isConnected, document.activeElement.id]",
            name,
        )
        assert kept == [False, name]


def layered(folder: Path) -> Path:
    """A base of so many layers that a merge takes a while."""
    make_base(folder)
    tensors = load_file(folder / "model.safetensors")
    matrices = {f"model.layers.{layer}.mlp.up.weight": torch.randn(128, 128) for layer in range(LAYERS)}
    save_file({**tensors, **matrices}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def slowed(worker: psutil.Process) -> Iterator[None]:
    """Let a worker run for a small part of the time, so that there is something to see however fast this machine is."""
    over = threading.Event()

    def pace() -> None:
        while not over.is_set():
            worker.suspend()
            over.wait(0.05)
            worker.resume()
            over.wait(0.005)

    thread = threading.Thread(target=pace)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


NOTE_PROGRESS = """
window.noted = [];
new MutationObserver(() => {
  const bar = document.querySelector('progress');
  if (bar && bar.value !== noted.at(-1)) noted.push(bar.value);
}).observe(document.body, {subtree: true, childList: true, attributes: true});
"""
"""However long a look at the page takes, and however fast the merge is."""


def test_it_lives(browser: Chromium, tmp_path: Path, start_daemon: Daemons, pictures: Path) -> None:
    base = layered(tmp_path / "base")
    daemon = start_daemon(tmp_path / "state", base, environment={"FOLDIN_KEEP_BASES": "false"})
    first, second = (make_checkpoint(tmp_path / f"task{seed}", base, seed) for seed in (1, 2))
    browser.open(f"{daemon.http}/")
    assert "Nothing has been merged yet" in browser.text()
    browser.picture(pictures / "empty.png")
    browser.run("window.here = true")
    with daemon.client() as client:
        client.submit(first, name="first", wait=True)
        wait_for(lambda: browser.run("return Boolean(document.querySelector('#v1'))"), "the first version", 10)
        assert "Nothing has been merged yet" not in browser.text()
        worker = wait_for(lambda: daemon.worker, "the worker")
        browser.run(NOTE_PROGRESS)
        with slowed(worker):
            client.submit(second, name="second")
            wait_for(lambda: browser.run("return noted.length > 0"), "progress", 60)
            browser.picture(pictures / "merging.png")
            wait_for(lambda: browser.run("return noted.length > 1"), "more of it", 60)
        wait_for(lambda: browser.run("return Boolean(document.querySelector('#v2'))"), "the version", 30)
    assert browser.run("return document.querySelector('progress')") is None
    assert "0 waiting, 0 arriving" in browser.run("return document.querySelector('[role=status]').textContent")
    assert browser.run("return window.here"), "it was not loaded again"
    assert_quiet(browser, daemon)


def test_it_comes_back_with_the_daemon(browser: Chromium, past: History, tmp_path: Path, start_daemon: Daemons) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    daemon = start_daemon(past.copy(tmp_path / "state"), None, "--http", f"127.0.0.1:{port}")
    browser.open(f"{daemon.http}/")
    wait_for(lambda: is_live(browser), "the events")
    assert daemon.terminate() == 0
    wait_for(lambda: not is_live(browser), "the page to notice")
    daemon.start()
    wait_for(lambda: is_live(browser), "the page to follow again", 20)
