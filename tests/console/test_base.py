"""What every page has, in a browser: access, keys, colours, copying, and an outage that is told and over again."""

import re

import pytest
from playwright.sync_api import expect

from tests.conftest import API_SECRET

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_signing_in_and_out_leaves_no_secret_behind(open_page, accessible):
    page = open_page("/console/sign-in", secret=None)
    accessible(page)
    page.get_by_label("API secret").fill(API_SECRET)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console")
    expect(page.get_by_role("heading", level=1)).to_have_text("Live")
    accessible(page)
    assert API_SECRET not in page.content()
    assert API_SECRET not in page.url
    assert API_SECRET not in page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out.")
    assert "told=" not in page.url
    page.goto("/console")
    expect(page).to_have_url(re.compile("/console/sign-in"))


def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.goto("/console/nowhere")
    page.complaints.clear()  # the 404 itself
    page.keyboard.press("g")
    page.keyboard.press("l")
    page.wait_for_url("**/console")


def test_shortcuts_can_be_switched_off(open_page):
    page = open_page()
    page.get_by_role("button", name="Help and keyboard shortcuts").click()
    page.get_by_label("Shortcuts of single keys").uncheck()
    page.keyboard.press("Escape")
    page.reload()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_they_are_chosen(scheme, open_page, accessible):
    page = open_page(color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    by_system = page.evaluate(ground)
    accessible(page)
    button = page.get_by_role("button", name="Colours")
    button.click()
    button.click()
    expect(button).to_have_accessible_name("Colours: dark")
    page.reload()
    assert (page.evaluate(ground) == by_system) == (scheme == "dark")
    expect(button).to_have_accessible_name("Colours: dark")
    accessible(page)


def test_an_outage_is_told_and_over_again(open_page):
    page = open_page("/console/nowhere")
    banner = page.get_by_role("alert")
    page.route("**/console/alive", lambda route: route.fulfill(status=503, body="{}"))
    expect(banner).to_contain_text("The database does not answer")
    page.unroute("**/console/alive")
    expect(banner).to_be_hidden()
    page.complaints.clear()  # of each 503


def test_a_session_that_is_over_is_told_on_the_open_page(open_page):
    page = open_page()
    page.context.clear_cookies()
    expect(page.get_by_role("alert")).to_contain_text("Your session is over")
    page.get_by_role("alert").get_by_role("link", name="Sign in").click()
    page.get_by_label("API secret").fill(API_SECRET)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console")
    page.complaints.clear()  # of the 401


def test_a_phone_has_the_same(open_page, accessible):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
