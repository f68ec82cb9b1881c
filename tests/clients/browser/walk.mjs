// A real browser's walk through the storefront: page, events, WebSocket, login, logout. Every step is asserted.
//
//     node walk.mjs MODULES CHROMIUM CA PLAIN-URL SHOP-URL PROVIDER-URL FOLDER
//
// MODULES has node_modules; CA is the one authority that the browser is told to believe; FOLDER takes its profile and the screenshots.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, program, ca, plain, shop, provider, folder] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const WIDE = { width: 1280, height: 800 };
const NARROW = { width: 390, height: 780 };

/** Where Chromium looks for authorities beside its own: the NSS database of its user. */
function believe() {
  const home = join(folder, "home");
  const database = join(home, ".pki/nssdb");
  mkdirSync(database, { recursive: true });
  const certutil = (...words) => execFileSync("certutil", ["-d", `sql:${database}`, ...words]);
  certutil("-N", "--empty-password");
  certutil("-A", "-n", "storefront", "-t", "C,,", "-i", ca);
  return home;
}

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const context = await chromium.launchPersistentContext(join(folder, "profile"), {
  executablePath: program,
  headless: true,
  args: FLAGS,
  env: { ...process.env, HOME: believe() },
  viewport: WIDE,
});
context.setDefaultTimeout(20_000);
const page = await context.newPage();

const complaints = [];
page.on("console", (message) => message.type() === "error" && complaints.push(`${message.text()} ${message.location().url}`));
page.on("pageerror", (error) => complaints.push(String(error)));

const photograph = async (name) => {
  for (const [size, viewport] of Object.entries({ wide: WIDE, narrow: NARROW })) {
    await page.setViewportSize(viewport);
    const sideways = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(sideways, 0, `${name}, ${size}: the page is wider than the window`);
    await page.screenshot({ path: join(folder, `${name}-${size}.png`), fullPage: true });
  }
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: join(folder, `${name}-dark.png`), fullPage: true });
  await page.emulateMedia({ colorScheme: null });
  await page.setViewportSize(WIDE);
};
const texts = (selector) => page.locator(selector).allTextContents();

async function theFrontPage() {
  const answer = await page.goto(plain);
  assert.equal(page.url(), shop, "plain HTTP is sent on to HTTPS");
  assert.equal(answer.status(), 200);
  const { issuer, protocol } = await answer.securityDetails();
  assert.equal(issuer, "Storefront example authority");
  assert.match(protocol, /^TLS 1\.3$/);
}

async function eventsComeOneByOne() {
  const came = await page.evaluate(
    () =>
      new Promise((done) => {
        const came = [];
        const source = new EventSource("/events");
        source.onmessage = ({ data }) => {
          came.push({ at: performance.now(), said: JSON.parse(data) });
          if (came.length === 4) (source.close(), done(came));
        };
        source.onerror = () => done(came);
      }),
  );
  assert.equal(came.length, 4, "the stream broke");
  for (const { said } of came) assert.match(said.version, /^v[12]$/, JSON.stringify(said));
  // They are sent with a second between them; what were held back would come at once.
  const took = came[3].at - came[0].at;
  assert.ok(took > 1500, `four events came within ${took} ms`);
  assert.ok((await texts("#events li")).length >= 3);
}

async function theWebSocketAnswers() {
  for (const said of ["Hello?", "Is anybody there — ünïcödé ✓", "x".repeat(200)]) {
    await page.getByLabel("Your words").fill(said);
    await page.getByRole("button", { name: "Say it" }).click();
    await page.locator("#heard li").first().filter({ hasText: said }).waitFor();
  }
  assert.equal((await texts("#heard li")).length, 3);
}

const sessions = async () => (await context.cookies(shop)).filter((cookie) => cookie.httpOnly && cookie.name.startsWith("__Host-"));
const status = (path) => page.evaluate((path) => fetch(path, { redirect: "manual" }).then((answer) => answer.status), path);

async function login(name) {
  await page.getByRole("link", { name: "My account" }).click();
  await page.waitForURL((url) => url.href.startsWith(provider));
  await page.getByRole("heading", { name: "Who are you?" }).waitFor();
  await photograph("login");
  await page.getByLabel("Name").fill(name);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.waitForURL(new URL("/account", shop).href);
  assert.equal(await page.locator("#name").textContent(), name);
  assert.equal(await page.locator("#email").textContent(), "adalovelace@shop.localhost");
  for (const cookie of await sessions()) assert.ok(cookie.secure && cookie.path === "/" && cookie.sameSite === "Lax", cookie.name);
  assert.ok((await sessions()).length > 0, "no session's cookie");
  await photograph("account");
}

async function theSessionLasts() {
  await page.reload();
  assert.equal(page.url(), new URL("/account", shop).href, "a session is asked for once");
  const other = await context.newPage();
  await other.goto(new URL("/account", shop).href);
  assert.equal(await other.locator("#name").textContent(), "Ada Lovelace", "another tab has the same session");
  await other.close();
}

async function logout() {
  await page.getByRole("link", { name: "Log out" }).click();
  await page.waitForURL(shop);
  assert.equal(await status("/account"), 401, "what is no navigation is refused, not sent to log in");
  await page.goto(new URL("/account", shop).href);
  await page.getByRole("heading", { name: "Who are you?" }).waitFor();
}

try {
  await theFrontPage();
  await eventsComeOneByOne();
  await theWebSocketAnswers();
  await photograph("front");
  // The answer 401 of `logout` is a complaint of the browser's, and meant.
  await login("Ada Lovelace");
  await theSessionLasts();
  await logout();
  assert.deepEqual(complaints.filter((text) => !text.includes("401")), []);
  console.log("browser ok");
} catch (error) {
  await page.screenshot({ path: join(folder, "failed.png") }).catch(() => {});
  console.error(`at ${page.url()}: ${complaints.join("\n")}`);
  throw error;
} finally {
  await context.close();
}
