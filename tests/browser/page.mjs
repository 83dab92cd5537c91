// Drives the page as a person would, and reports what was seen as JSON on standard output.
// Usage: node page.mjs CHROMIUM BASE_URL IMAGE OUT_FOLDER
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [executablePath, base, image, out] = process.argv.slice(2);
const web = createRequire(new URL("../../web/package.json", import.meta.url));
const { chromium } = web("playwright-core");
const FIT_MS = 300_000;
const QUIET = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

// While a fit goes on, a picture may be replaced between two requests, and a small machine be slow: 503 asks to
// come again, and the page does. That is no complaint, neither where the browser notes it nor where the viewer does.
const BUSY = 503;
const withoutBusy = ({ complaints, busy }) =>
  complaints.filter((text) => !busy.some(({ path }) => text.includes(path)) && !text.includes(`status of ${BUSY}`));

/** A page that notes every complaint and every request. */
async function openPage(browser, report, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error") report.complaints.push(message.text());
  });
  page.on("pageerror", (error) => report.complaints.push(String(error)));
  page.on("request", (request) => report.requests.push(request.url()));
  page.on("response", async (response) => {
    const { pathname: path, search } = new URL(response.url());
    if (response.status() >= 400) report.complaints.push(`${response.status()} ${path}${search}`);
    if (response.status() === BUSY) report.busy.push({ path, words: await response.text() });
  });
  return page;
}

/** The viewer's canvas, once it holds a whole picture that no longer changes, as a PNG file. */
async function saveCanvas(page, name) {
  const canvas = page.locator(".openseadragon-canvas canvas").first();
  await canvas.waitFor({ state: "attached" });
  const read = () => canvas.evaluate((element) => element.toDataURL("image/png"));
  let before = "";
  for (let now = await read(); now !== before; now = await read()) {
    before = now;
    await page.waitForTimeout(1500);
  }
  writeFileSync(join(out, name), Buffer.from(before.split(",")[1], "base64"));
}

/** How many pixels of the block tree's canvas are drawn, and whether it is shown. */
const readTree = (page) =>
  page.locator("canvas.stage-tree").evaluate((canvas) => {
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const drawn = data.filter((value, index) => index % 4 === 3 && value > 0).length;
    return { drawn, shown: Number(getComputedStyle(canvas).opacity) > 0, total: width * height };
  });

const tileVersions = (report) => [
  ...new Set(
    report.requests.filter((url) => /\/iiif\/.*\.jpg/.test(url)).map((url) => new URL(url).searchParams.get("v")),
  ),
];

async function uploadAndFollow(page, report) {
  await page.goto(base);
  await page.getByRole("radio", { name: "Draft" }).check();
  await page.locator("input[type=file]").setInputFiles(image);
  await page.waitForURL(/#\/scene\/[0-9a-z]{26}$/);
  report.id = page.url().split("/").at(-1);
  const status = page.locator(".status");
  await page.locator(".status.fitting").waitFor({ timeout: FIT_MS });
  report.seen.push(await status.textContent());
  await page.locator(".quality").waitFor({ timeout: FIT_MS });
  report.seen.push("quality");
  await page.locator(".status:not(.fitting)").waitFor({ timeout: FIT_MS });
  report.seen.push(await status.textContent());
  if (report.seen.at(-1) !== "Ready") throw new Error(await page.locator(".panel").innerText());
  report.psnr = parseFloat(await page.locator(".quality").textContent());
}

async function lookAndToggle(page, report) {
  await page.getByRole("button", { name: "Whole picture" }).click();
  await saveCanvas(page, "iiif.png");
  report.curve = await page.locator(".curve-line").getAttribute("d", { timeout: 5000 });
  report.treeBefore = await readTree(page);
  await page.getByRole("button", { name: "Blocks" }).click();
  await page.locator(".legend").waitFor();
  await page.waitForTimeout(300);
  report.treeAfter = await readTree(page);
  await page.screenshot({ path: join(out, "blocks.png") });
  await page.getByRole("button", { name: "Blocks" }).click();
  report.treeOff = await readTree(page);
}

async function returnToGallery(page, report) {
  await page.getByRole("link", { name: "All scenes", exact: true }).click();
  const thumbnail = page.locator(".card img").first();
  await thumbnail.waitFor();
  report.cards = await page.locator(".card").count();
  report.thumbnailWidth = await thumbnail.evaluate((img) => img.decode().then(() => img.naturalWidth));
}

async function openManual(browser, report) {
  const page = await openPage(browser, report);
  await page.goto(`${base}/docs`);
  await page.locator(".opblock").first().waitFor();
  report.operations = await page.locator(".opblock").count();
}

const EMPTY_PAGE = '<!doctype html><link rel="icon" href="data:,"><body></body>';

/** OpenSeadragon by itself on one of the service's own sources, on an otherwise empty page. */
async function openAlone(browser, report, source, name) {
  const page = await openPage(browser, report);
  await page.route(`${base}/empty`, (route) => route.fulfill({ contentType: "text/html", body: EMPTY_PAGE }));
  await page.goto(`${base}/empty`);
  await page.evaluate(readFileSync(web.resolve("openseadragon"), "utf8"));
  await page.evaluate(
    (tileSources) =>
      new Promise((resolve, reject) => {
        const element = document.createElement("div");
        Object.assign(element.style, { width: "600px", height: "400px" });
        document.body.append(element);
        const viewer = new OpenSeadragon.Viewer({
          element,
          tileSources,
          drawer: "canvas",
          showNavigationControl: false,
        });
        viewer.addHandler("open", () => resolve());
        viewer.addHandler("open-failed", (event) => reject(new Error(event.message)));
      }),
    source,
  );
  await saveCanvas(page, name);
}

const report = { complaints: [], busy: [], requests: [], seen: [] };
const browser = await chromium.launch({ executablePath, args: QUIET });
try {
  const page = await openPage(browser, report);
  await uploadAndFollow(page, report);
  await lookAndToggle(page, report);
  await returnToGallery(page, report);
  await openManual(browser, report);
  await openAlone(browser, report, `${base}/dzi/${report.id}.dzi`, "dzi.png");
  await openAlone(browser, report, `${base}/iiif/${report.id}/info.json`, "alone.png");
  report.tileVersions = tileVersions(report);
  report.complaints = withoutBusy(report);
} finally {
  await browser.close();
}
console.log(JSON.stringify(report));
