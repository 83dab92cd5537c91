// Looks at a shape as a person would, and reports what was seen as JSON on standard output.
// Usage: node shape.mjs CHROMIUM BASE_URL OUT_FOLDER
import { createRequire } from "node:module";
import { join } from "node:path";

const [executablePath, base, out] = process.argv.slice(2);
const web = createRequire(new URL("../../web/package.json", import.meta.url));
const { chromium } = web("playwright-core");
const LOAD_MS = 120_000;
// Without a graphics card, WebGL is drawn by SwiftShader, which newer browsers only take when told to.
const ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run"];
const BACKGROUND = "rgb(255, 0, 255)";
const BUSY = 503;

const report = { complaints: [], requests: [], failed: [], tiles: [] };

function watch(page) {
  page.on("console", (message) => {
    if (message.type() === "error") report.complaints.push(message.text());
  });
  page.on("pageerror", (error) => report.complaints.push(String(error)));
  page.on("request", (request) => report.requests.push(request.url()));
  page.on("requestfailed", (request) => report.failed.push(request.url()));
  page.on("response", (response) => {
    const { pathname } = new URL(response.url());
    if (pathname.startsWith("/tiles3d/")) report.tiles.push({ pathname, status: response.status() });
    else if (response.status() >= 400 && response.status() !== BUSY) report.failed.push(response.url());
  });
}

/** Waits until all tiles of the view have come, and two frames more. */
async function settled(page) {
  await page.locator('.stage[aria-busy="false"]').waitFor({ timeout: LOAD_MS });
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
}

/** What WebGL draws, alone, on a colour that it never draws. */
async function saveStage(page, name) {
  await settled(page);
  const dress = (colour) =>
    page.locator(".stage").evaluate((stage, background) => {
      for (const part of stage.children) {
        // The mark of the keyboard's focus would be drawn too.
        part.querySelector("canvas")?.blur();
        const isStage = part.classList.contains("stage-shape");
        if (isStage) part.style.background = background;
        else part.style.visibility = background && "hidden";
      }
    }, colour);
  await dress(BACKGROUND);
  await page.locator(".stage-shape").screenshot({ path: join(out, name) });
  await dress("");
}

async function look(page) {
  await page.goto(base);
  const card = page.locator(".card").first();
  await card.waitFor();
  report.card = await card.innerText();
  report.early = [...report.requests];
  await card.click();
  await saveStage(page, "surface.png");
  await page.getByRole("button", { name: "Mesh" }).click();
  await saveStage(page, "wires.png");
  await page.getByRole("button", { name: "Mesh" }).click();
  await saveStage(page, "again.png");
  await page.getByRole("button", { name: "Blocks" }).click();
  await page.locator(".legend").waitFor();
  await saveStage(page, "blocks.png");
  report.levels = (await page.locator(".legend > div").count()) - 1;
  await page.getByRole("button", { name: "Blocks" }).click();
}

async function goNear(page) {
  const before = report.tiles.length;
  await page.locator(".stage-shape canvas").focus();
  for (const key of ["+", "+", "+", "ArrowLeft"]) await page.keyboard.press(key);
  await page.waitForTimeout(500);
  await saveStage(page, "near.png");
  report.tilesNear = report.tiles.length - before;
}

const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
try {
  const page = await browser.newPage({ viewport: { width: 760, height: 620 } });
  watch(page);
  await look(page);
  await goNear(page);
} finally {
  await browser.close();
}
console.log(JSON.stringify(report));
