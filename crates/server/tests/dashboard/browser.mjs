// Uses the dashboard in Chromium, as `it dashboard::` stages it: BASE, LINK (a sign-in link), VIEWER (a key), FIXED (a
// file that repairs the receiver), PLAYWRIGHT (the folder of playwright-core and axe-core).
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const { BASE, LINK, VIEWER, FIXED, PLAYWRIGHT, SHOTS } = process.env;
const require = createRequire(`${PLAYWRIGHT}/package.json`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const PAGES = ["", "queues", "queues/messages", "queues/messages/dead-letters", "queues/messages/send", "queues/waiting", "dead-letters", "streams", "streams/towpath.audit", "orders", "outbox", "fleet", "tasks", "audit", "health", "nowhere"];

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const faults = [];

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && faults.push(`${page.url()}: ${message.text()}`));
  page.on("pageerror", (error) => faults.push(`${page.url()}: ${error}`));
  page.on("request", (request) => request.url().startsWith(`${BASE}/`) || faults.push(`a request to ${request.url()}`));
  page.on("dialog", (dialog) => faults.push(`a dialog: ${dialog.message()}`));
  return page;
}

const visit = async (page, path) => {
  await page.goto(`${BASE}/#/${path}`);
  await page.waitForSelector("main h1");
};
const button = (page, name) => page.getByRole("button", { name, exact: true });
const see = (page, text) => page.getByText(text).first().waitFor();

async function signIn() {
  const page = await open();
  await page.goto(LINK);
  await page.waitForSelector("nav");
  assert.equal(new URL(page.url()).hash, "", "the code stays in no history");
  return page;
}

/** A link works once. */
async function usedLink() {
  const page = await open();
  const before = faults.length;
  await page.goto(LINK);
  await see(page, "the link was used or is too old");
  // Chromium logs each refusal.
  faults.splice(before);
}

/** Problems come first, in words. */
async function overview(page) {
  await visit(page, "");
  await see(page, "dead letters");
  assert.match(await page.title(), /^\(\d+\) Overview · Towpath$/);
}

/** Why they died; their redrive after the repair. */
async function deadLetters(page) {
  await visit(page, "dead-letters");
  await see(page, "messages: 12 dead letters");
  await page.getByText("customer_id is missing").first().waitFor();
  await page.getByText("12 messages", { exact: true }).click();
  await page.locator("details details summary").first().click();
  await see(page, "Attempts");
  writeFileSync(FIXED, "");
  await button(page, "Redrive 10 first…").click();
  await button(page, "Redrive 10 messages").click();
  await see(page, "messages: 2 dead letters");
  await button(page, "Redrive…").first().click();
  await button(page, "Redrive 2 messages").click();
  await see(page, "No dead letters");
}

/** A pause is seen in another tab. */
async function pause(page) {
  const other = await page.context().newPage();
  await visit(other, "queues/messages");
  await visit(page, "queues/messages");
  await button(page, "Pause messages").click();
  await other.locator("main .badge", { hasText: "paused" }).waitFor();
  await button(other, "Resume messages").click();
  await button(page, "Pause messages").waitFor();
  await other.close();
}

/** Markup in a payload is text, and numbers stay as they were written. */
async function send(page) {
  await visit(page, "queues/waiting/send");
  const payload = '{"text":"<img src=x onerror=alert(1)>","number":9007199254740993}';
  await page.getByLabel("Payload").fill(payload);
  await page.getByLabel("Key").fill("zoe");
  await button(page, "Send").click();
  await see(page, "Sent:");
  await visit(page, "queues/waiting");
  await page.locator("summary", { hasText: "onerror" }).click();
  assert.match(await page.locator("details[open] pre").innerText(), /"number": 9007199254740993/);
  assert.equal(await page.locator("main img").count(), 0);
}

/** What destroys asks for the name. */
async function purge(page) {
  await visit(page, "queues/waiting");
  await button(page, "Purge…").click();
  const act = page.locator("dialog button.danger");
  assert.ok(await act.isDisabled());
  await page.locator("dialog input").fill("another");
  assert.ok(await act.isDisabled());
  await page.keyboard.press("Escape");
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Purge…", "the focus is where it was");
  await button(page, "Purge…").click();
  await page.locator("dialog input").fill("waiting");
  await act.click();
  await see(page, "No message waits.");
}

/** A key that may only read sees no action, and the server refuses what the page hides. */
async function viewer() {
  const page = await open();
  const before = faults.length;
  await page.goto(`${BASE}/`);
  await page.locator("input[type=password]").fill(VIEWER);
  await button(page, "Sign in").click();
  await page.waitForSelector("nav");
  await visit(page, "queues/messages");
  await see(page, "time to drain");
  assert.equal(await button(page, "Pause messages").count(), 0);
  assert.equal(await button(page, "Purge…").count(), 0);
  const status = await page.evaluate(() => fetch("v1/queues/messages/purge", { method: "POST" }).then((answer) => answer.status));
  assert.equal(status, 403);
  await button(page, "Sign out").click();
  await see(page, "Sign in to Towpath");
  assert.equal(await page.evaluate(() => fetch("v1/queues").then((answer) => answer.status)), 401);
  faults.splice(before);
}

/** Only with keys: to the queues, into one, to its tabs. */
async function keyboard(page) {
  await visit(page, "");
  await page.reload();
  await page.waitForSelector("main h1");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  for (let count = 0; count < 30; count += 1) {
    if ((await page.evaluate(() => document.activeElement.textContent)) === "Queues") break;
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  await page.locator("h1", { hasText: "Queues" }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.tagName), "H1", "the heading has the focus");
}

/** Each page in both themes and widths (all four pairs with SHOTS): accessible, quiet, no wider than the window. */
async function every(session) {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      if (!SHOTS && (width === 1280) !== (colorScheme === "light")) continue;
      const page = await open({ colorScheme, viewport: { width, height: 800 }, storageState: session });
      await visit(page, "");
      await page.evaluate(axe);
      for (const path of PAGES) {
        await visit(page, path);
        await page.waitForFunction(() => !document.querySelector("[aria-busy]"));
        const found = await page.evaluate(() => axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
        assert.ok(found.passes.length > 10, "axe looks at the page");
        for (const { id, nodes } of found.violations) faults.push(`${path} ${colorScheme} ${width}: ${id} ${nodes[0].html.slice(0, 200)}`);
        const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        if (excess > 0) faults.push(`${path} ${width}: ${excess} pixels too wide`);
        if (SHOTS) await page.screenshot({ path: `${SHOTS}/${colorScheme}-${width}-${path.replaceAll("/", "_") || "overview"}.png` });
      }
      await page.context().close();
    }
  }
}

const page = await signIn();
const steps = [usedLink, overview, deadLetters, pause, send, purge, viewer, keyboard];
for (const step of steps) {
  const began = Date.now();
  await step(page);
  console.log(`${step.name}: ${Date.now() - began} ms`);
}
await every(await page.context().storageState());
await browser.close();
assert.deepEqual(faults, []);
