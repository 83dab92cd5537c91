import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

const SERVER = "http://127.0.0.1:8000";
const SERVED_BY_ACORN = ["/scenes", "/uploads", "/iiif", "/dzi", "/tiles3d", "/healthz", "/session"];

const POLICY = [
  "default-src 'self'",
  "img-src 'self' blob: data:",
  "object-src 'none'",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

/** The built page carries its own policy; the development server needs inline styles and has none. */
function contentSecurityPolicy(): Plugin {
  return {
    name: "content-security-policy",
    apply: "build",
    transformIndexHtml: () => [
      {
        tag: "meta",
        attrs: { "http-equiv": "Content-Security-Policy", content: POLICY },
        injectTo: "head-prepend",
      },
    ],
  };
}

export default defineConfig({
  base: "./",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  plugins: [contentSecurityPolicy()],
  build: {
    outDir: "../acorn_svc/web",
    emptyOutDir: true,
    target: "es2022",
    chunkSizeWarningLimit: 800, // kB: three.js, loaded when a shape is looked at
  },
  server: { proxy: Object.fromEntries(SERVED_BY_ACORN.map((path) => [path, SERVER])) },
  test: { include: ["tests/**/*.test.ts"] },
});
