// Prints the errors and warnings of Khronos' validator about a GLB file, as a JSON list of sentences.
// Usage: node validate_gltf.mjs FILE
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const web = createRequire(new URL("../../web/package.json", import.meta.url));
const validator = web("gltf-validator");
const WARNING = 1; // 0 are errors, 2 and 3 information and hints
const report = await validator.validateBytes(new Uint8Array(readFileSync(process.argv[2])));
const serious = report.issues.messages.filter(({ severity }) => severity <= WARNING);
console.log(JSON.stringify(serious.map(({ code, message, pointer }) => `${code}: ${message} (${pointer})`)));
