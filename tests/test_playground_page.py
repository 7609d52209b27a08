"""The playground's page in a browser, at the width of a phone and of a desktop."""

import importlib.util
import shutil
import socket
import threading
import time

import pytest

from rdjax import playground, train
from tests.commands import run_command
from tests.test_user_commands import arguments, folder  # noqa: F401  a fixture

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDED = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
NEEDED += [] if CHROMIUM and DRIVER else ["chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NEEDED), reason=f"needs {', '.join(NEEDED)}"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def page(model, folder, tmp_path_factory):  # noqa: F811
    """Serves the playground of a finished run; returns its address and what the systems answer."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert run_command(train.main, *arguments(model, folder, workdir)) == 0
    prepared, systems, rules = playground.read_run(workdir)
    (rule,) = rules.values()
    expected = list(playground.answers(prepared, systems, rule, "Is 18 a prime?", 8))[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    built = playground.build_page(prepared, systems, rules, 8)
    launch = {"server_name": "127.0.0.1", "server_port": port, "share": False, "quiet": True}
    threading.Thread(target=lambda: built.queue().launch(prevent_thread_lock=True, **launch), daemon=True).start()
    for _ in range(120):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", expected
    built.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_someone_types_and_reads_three_answers(page, width, height):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    address, expected = page
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    metrics = {"width": width, "height": height, "pixelRatio": 1}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(address)
        wait = WebDriverWait(browser, 60)
        box = wait.until(lambda it: it.find_elements(By.CSS_SELECTOR, "textarea:not([disabled])"))[0]
        box.send_keys("Is 18 a prime?", Keys.ENTER)

        def shown() -> list[str]:
            boxes = [browser.find_element(By.CSS_SELECTOR, f"#{name} textarea") for name in playground.NAMES]
            return [box.get_attribute("value") for box in boxes]

        wait.until(lambda it: [text.strip() for text in shown()] == [text.strip() for text in expected])
        # Nothing is wider than the screen.
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.quit()
