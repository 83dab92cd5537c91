// Signs in on the page with a key, wrongly and rightly, and waits until the session ends.
// Usage: node sign_in.mjs CHROMIUM BASE_URL KEY
import { createRequire } from "node:module";

const [executablePath, base, key] = process.argv.slice(2);
const web = createRequire(new URL("../../web/package.json", import.meta.url));
const { chromium } = web("playwright-core");

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-quic"] });
const context = await browser.newContext();
const page = await context.newPage();
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));

const uploadable = () => page.locator("input[type=file]").count();
const dialog = page.getByRole("dialog");

await page.clock.install();
await page.goto(base);
await page.getByRole("button", { name: "Sign in" }).click();
const before = await uploadable();
await dialog.getByLabel("Key").fill("wrong");
await dialog.getByRole("button", { name: "Sign in" }).click();
const refusal = await dialog.getByRole("alert").innerText();
await dialog.getByLabel("Key").fill(key);
await dialog.getByRole("button", { name: "Sign in" }).click();
await page.getByRole("button", { name: "Sign out" }).waitFor();
await page.locator("input[type=file]").first().waitFor({ state: "attached" });
const readable = await page.evaluate(() => document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage }));

await page.getByRole("button", { name: "Sign out" }).click();
await page.getByRole("button", { name: "Sign in" }).click();
await dialog.getByLabel("Key").fill(key);
await dialog.getByRole("button", { name: "Sign in" }).click();
await page.getByRole("button", { name: "Sign out" }).waitFor();
await page.clock.fastForward("12:00:01");
await dialog.getByText("Your session has ended").waitFor();
await page.locator("input[type=file]").first().waitFor({ state: "detached" });
console.log(JSON.stringify({ before, refusal, readable, errors }));
await browser.close();
