"""A real browser for the tests of the report's page; where there is none they are skipped, and say what is missing.

On Debian: `apt-get install chromium chromium-driver`. The Python side is selenium, which `tox -e page` installs.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--window-size=1280,900"),
)
_BLANK = "about:blank"


def _lacking() -> str:
    """What is missing for a browser to be driven, with what brings it, or an empty string."""
    found = {"chromium": "Debian package chromium", "chromedriver": "Debian package chromium-driver"}
    missing = [f"{name} ({package})" for name, package in found.items() if not shutil.which(name)]
    if importlib.util.find_spec("selenium") is None:
        missing.append("selenium (pip install selenium)")
    return f"no browser to open the page in; missing: {', '.join(missing)}" if missing else ""


class Browser:
    """Chromium with a page of our own: what tests do with it and ask it.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, fragment: str = "", width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """The page as if nobody had been there, in a window of this size; what was logged before is forgotten."""
        self.driver.get(_BLANK)
        self.command("Emulation.setScriptExecutionDisabled", value=False)
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.media(dark=dark)
        self.logs("browser"), self.logs("performance")
        self.driver.get(page.as_uri() + fragment)
        self.until("return document.readyState === 'complete' && document.documentElement.className === 'js'")

    def media(self, name: str = "", dark: bool = False) -> None:
        """Screen or print, light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.command("Emulation.setEmulatedMedia", media=name, features=features)

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, code: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(code, *arguments)

    def until(self, code: str) -> None:
        """Waits for a script to return true: on a busy machine the driver may be back before the page is there."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.02).until(lambda _: self.run(code))

    def logs(self, kind: str) -> list[Any]:
        return list(self.driver.get_log(kind))

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened, without what follows a #."""
        entries = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]

    def accessible(self) -> list[tuple[str, str, str]]:
        """(role, name, description) of everything that assistive technology is told of."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        told = [
            [n.get(key, {}).get("value", "") for key in ("role", "name", "description")]
            for n in nodes
            if not n["ignored"]
        ]
        return [(str(role), str(name).strip(), str(description)) for role, name, description in told]

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Keys, one after the other, wherever the focus is."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    @property
    def focused(self) -> str:
        """The link that has the focus, or the element's tag."""
        return str(self.run("const a = document.activeElement; return a.getAttribute('href') || a.tagName"))

    @property
    def hash(self) -> str:
        return str(self.run("return location.hash"))

    @property
    def panel(self) -> str | None:
        """The text of the panel, None while it is shut."""
        text = self.run("const p = document.getElementById('panel'); return p.open ? p.innerText : null")
        return None if text is None else str(text)

    @property
    def status(self) -> str:
        """What a screen reader was told last."""
        return str(self.run("return document.getElementById('status').textContent"))

    def picture(self, path: Path) -> None:
        """A screenshot."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    lacking = _lacking()
    if lacking:
        pytest.skip(lacking)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(prefix="conformance-page-", ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        # With the driver's path given, selenium looks for none and downloads none.
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


@pytest.fixture(scope="session")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report on sound and faulty simulations; made only where there is a browser."""
    from page_reports import report_on

    from conformance.reporting.page import write_page

    names = ("sound", "bias-before-sum", "no-all-reduce", "bias-on-rank-0", "wide", "loses-a-rank")
    return write_page(tmp_path_factory.mktemp("report"), report_on(*names))
