// Uploads a file by tus-js-client through a network that breaks the first connections in the middle.
// Usage: node resume_upload.mjs BASE_URL FILE BREAKS; reports as JSON what was asked for and what came of it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";

const [base, file, breaks] = process.argv.slice(2);
const web = createRequire(new URL("../../web/package.json", import.meta.url));
const { Upload } = web("tus-js-client");
const content = readFileSync(file);
const report = { requests: [], broken: 0 };

/** Passes bytes on both ways; cuts the wire once half of what is left of the file went through. */
function unreliableNetwork() {
  const { hostname, port } = new URL(base);
  const server = createServer((client) => {
    const service = connect(Number(port), hostname);
    let passed = 0;
    client.on("data", (bytes) => {
      passed += bytes.length;
      if (report.broken < Number(breaks) && passed > content.length / 2 ** (report.broken + 1)) {
        report.broken++;
        client.destroy();
        service.end();
      } else service.write(bytes);
    });
    service.on("data", (bytes) => client.write(bytes));
    for (const [one, other] of [[client, service], [service, client]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

const network = await unreliableNetwork();
try {
  await new Promise((resolve, reject) => {
    const upload = new Upload(content, {
      endpoint: `http://127.0.0.1:${network.address().port}/uploads`,
      metadata: { title: "Through thick and thin", preset: "draft" },
      retryDelays: [0, 100, 200, 400, 800, 1600, 3200],
      onBeforeRequest: (request) => {
        report.requests.push([request.getMethod(), Number(request.getHeader("Upload-Offset") ?? 0)]);
      },
      onError: reject,
      onSuccess: ({ lastResponse }) => {
        report.scene = lastResponse.getHeader("Acorn-Scene");
        report.upload = new URL(upload.url).pathname;
        resolve();
      },
    });
    upload.start();
  });
} finally {
  network.close();
}
console.log(JSON.stringify(report));
