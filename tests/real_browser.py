"""A fixture with a real browser, for `conftest.py` to import."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
QUIET = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"),
    *("no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, which keeps what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*QUIET, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()
