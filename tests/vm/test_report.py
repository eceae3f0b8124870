"""The page of a real crash in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from postpanic.cli.app import main
from postpanic.errors import PostpanicError
from postpanic.process import find_program
from tests.vm.lab import Crash

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1600"),
)
WAIT_S = 30.0


@pytest.fixture(scope="module")
def crash(crashed: Callable[..., Crash]) -> Crash:
    return crashed("6.12", scenario="locked")


@pytest.fixture(scope="module")
def page(crash: Crash, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report") / "crash.html"
    assert main(["report", "-o", str(place), str(crash.filtered)]) == 0
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    try:
        options.binary_location = str(find_program("chromium"))
        service = webdriver.ChromeService(str(find_program("chromedriver")))
    except PostpanicError as exc:
        pytest.skip(f"no browser: {exc}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(WAIT_S)
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    browser.get("about:blank")
    browser.get(page.as_uri())
    return browser


def wait(browser: webdriver.Chrome, condition: Callable[[webdriver.Chrome], object]) -> None:
    WebDriverWait(browser, WAIT_S).until(condition)


def read_log(browser: webdriver.Chrome, name: str) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = browser.get_log(name)  # type: ignore[no-untyped-call]
    return entries


def is_open(place: WebElement, _: webdriver.Chrome) -> bool:
    return place.get_attribute("open") is not None


def test_page_opens_without_a_complaint_and_without_a_network(shown: webdriver.Chrome, page: Path) -> None:
    assert read_log(shown, "browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in read_log(shown, "performance")]
    urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
    # The browser's own pages are its own business.
    assert {url for url in urls if not url.startswith(("chrome", "data:"))} <= {page.as_uri(), "about:blank"}
    assert shown.title == shown.find_element(By.TAG_NAME, "h1").text
    assert len(shown.find_elements(By.CSS_SELECTOR, "#findings article")) >= 1


def test_pictures_are_there_and_can_be_read_aloud(shown: webdriver.Chrome) -> None:
    figures = shown.find_elements(By.TAG_NAME, "figure")
    assert len(figures) >= 5
    for figure in figures:
        assert figure.get_attribute("role") == "img"
        assert len(figure.get_attribute("aria-label") or "") > 10
    # The deadlock of the scenario is in the graph, by the names of its tasks.
    waits = shown.find_element(By.CSS_SELECTOR, "#waits svg")
    assert "abba-one" in (waits.get_attribute("textContent") or "")
    size = waits.size
    assert size["width"] > 300
    assert size["height"] > 100


def test_every_link_of_a_finding_leads_to_its_evidence(shown: webdriver.Chrome) -> None:
    pointing: dict[str, bool] = {}
    for item in shown.find_elements(By.CSS_SELECTOR, "#findings li:has(a)"):
        name = (item.find_element(By.TAG_NAME, "a").get_attribute("href") or "").partition("#")[2]
        # What stands in the output is beside the link, where there is one thing to point to.
        pointing[name] = pointing.get(name, False) or bool(item.find_elements(By.TAG_NAME, "code"))
    assert sum(pointing.values()) >= 3
    for name, is_marked in pointing.items():
        shown.execute_script("location.hash = arguments[0]", name)
        place = shown.find_element(By.ID, name)
        wait(shown, partial(is_open, place))
        assert place.find_element(By.TAG_NAME, "pre").is_displayed()
        assert bool(place.find_elements(By.TAG_NAME, "mark")) == is_marked, name


def test_search_finds_what_is_closed_and_escape_ends_it(shown: webdriver.Chrome) -> None:
    shown.find_element(By.TAG_NAME, "body").send_keys("/")
    field = shown.switch_to.active_element
    assert field.get_attribute("id") == "search"
    assert not shown.find_element(By.CSS_SELECTOR, "#log pre").is_displayed()
    field.send_keys("Linux version")
    found = shown.find_element(By.ID, "found")
    wait(shown, lambda _: re.fullmatch(r"[1-9]\d* found", found.text))
    hits = [row for row in shown.find_elements(By.CSS_SELECTOR, "#log .line") if row.is_displayed()]
    assert hits
    assert all("Linux version" in row.text for row in hits)
    field.send_keys(Keys.ESCAPE)
    wait(shown, lambda _: not found.text)
    assert not shown.find_element(By.CSS_SELECTOR, "#log pre").is_displayed()
    assert not shown.find_elements(By.CSS_SELECTOR, "[data-row][hidden]")


def test_search_for_nothing_that_is_there_says_so(shown: webdriver.Chrome) -> None:
    shown.find_element(By.ID, "search").send_keys("no such words anywhere")
    wait(shown, lambda browser: browser.find_element(By.ID, "found").text == "0 found")


def test_dark_and_light_are_both_readable(shown: webdriver.Chrome) -> None:
    seen = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        ink, ground = shown.execute_script(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
        label = shown.find_element(By.CSS_SELECTOR, "#memory svg text").value_of_css_property("fill")
        assert contrast(ink, ground) > 7
        assert contrast(label, ground) > 4.5
        seen.add(ground)
    assert len(seen) == 2


def test_printed_page_has_everything_and_no_controls(shown: webdriver.Chrome) -> None:
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not shown.find_element(By.TAG_NAME, "header").is_displayed()
    printed = shown.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 20_000
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_redacted_page_holds_no_names_and_no_addresses(crash: Crash, tmp_path: Path) -> None:
    place = tmp_path / "redacted.html"
    assert main(["report", "--redact", "all", "-o", str(place), str(crash.filtered)]) == 0
    text = place.read_text()
    assert not re.search(r"\bffff[0-9a-f]{12}\b", text)
    assert not re.search(r"\bpanic-maker\b", text)
    assert "name-" in text


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two CSS colours (WCAG 2.1)."""
    lights = sorted(map(luminance, (first, second)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
