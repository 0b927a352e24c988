"""A server of an engine on a free port, and headless Chromium that looks at its page.

Needs selenium, and chromium and chromedriver on the PATH (Debian: apt-get install chromium
chromium-driver). Where one is missing, the test is skipped and says so.
"""

import contextlib
import json
import shutil
import socket
import threading
import urllib.parse

import pytest

_PATIENCE = 30  # seconds for what the page is to show
_ARGUMENTS = (
  "headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,1000",
  "no-proxy-server", "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


@contextlib.contextmanager
def chromium():
  """A browser that finds no host but 127.0.0.1."""
  webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is missing: pip install 'gr4ad_jax[dev]'"
  )
  binary = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
  )
  service = shutil.which("chromedriver")
  if not (binary and service):
    pytest.skip("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for argument in _ARGUMENTS:
    options.add_argument(f"--{argument}")
  options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
  driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
  try:
    yield driver
  finally:
    driver.quit()


@contextlib.contextmanager
def served(engine, token=""):
  """The address of a server of the engine, on a free port."""
  uvicorn = pytest.importorskip(
    "uvicorn", reason="uvicorn is missing: pip install 'gr4ad_jax[serve]'"
  )
  pytest.importorskip("fastapi", reason="fastapi is missing: pip install 'gr4ad_jax[serve]'")
  from gr4ad_jax.serving.app import create_app

  with socket.create_server(("127.0.0.1", 0)) as listener:
    server = uvicorn.Server(
      uvicorn.Config(create_app(engine, token), log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join(10)


class Visit:
  """The page in a browser; what it asked for and what the console said, since it was opened."""

  def __init__(self, driver, address):
    self.driver, self.address = driver, address
    driver.get("about:blank")
    self.hosts_asked()
    self.complaints()
    driver.get(address)

  def run(self, script):
    """What a script returns."""
    return self.driver.execute_script(script)

  def find(self, selector):
    """The first element that a selector finds."""
    return self.driver.find_element("css selector", selector)

  def all(self, selector):
    """Texts of all that a selector finds."""
    texts = (
      "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText ?? "
      "node.textContent)"
    )
    return self.driver.execute_script(texts, selector)

  def until(self, found, what):
    """Waits until a function finds something, and returns it."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    gone = (StaleElementReferenceException,)  # drawn anew since it was found
    return WebDriverWait(self.driver, _PATIENCE, 0.05, gone).until(lambda _: found(), what)

  def wait(self, selector, text=""):
    """Waits until something that a selector finds shows a text, and returns all of its text."""
    return self.until(
      lambda: [t for t in self.all(selector) if text in t], f"no {selector} shows {text!r}"
    )[0]

  def pick(self, user):
    """Types a customer's id, clicks it in the list, and waits for the history."""
    self.find("#user").clear()
    self.find("#user").send_keys(user)
    self.until(lambda: self.all("#users li")[:1] == [user], f"{user} is not listed first")
    self.until(lambda: self.find("#users li").click() is None, f"{user} can't be clicked")
    self.wait("#recommend:enabled")

  def ask(self):
    """Asks for recommendations, and waits for the ads."""
    self.find("#recommend").click()
    self.wait("#ads tr[data-key]")

  def hosts_asked(self):
    """The hosts, with their ports, that something was asked of."""
    events = [
      json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
    ]
    sent = [
      event["params"]["request"]["url"]
      for event in events
      if event["method"] == "Network.requestWillBeSent"
    ]
    return {urllib.parse.urlsplit(url).netloc for url in sent if not url.startswith("data:")}

  def complaints(self):
    """Messages of the console."""
    return [entry["message"] for entry in self.driver.get_log("browser")]
