/** Numbers as people read them. */

const UNITS = ["B", "KB", "MB", "GB", "TB"] as const;
const count = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const formatCount = (value: number): string => count.format(value);
export const formatCompact = (value: number): string => compact.format(value);
export const formatPercent = (share: number): string => `${Math.floor(share * 100)} %`;

/** Decimal units, three significant digits. */
export function formatBytes(bytes: number): string {
  const exponent = bytes < 1000 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** exponent;
  return `${exponent === 0 ? value : Number(value.toPrecision(3))} ${UNITS[exponent]}`;
}

/** A length in whatever units the mesh has, three significant digits, and all before the point. */
export const formatLength = (length: number): string =>
  length >= 100 ? count.format(Math.round(length)) : String(Number(length.toPrecision(3)));

export function formatSeconds(seconds: number): string {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A guess of a time, no finer than it can be. */
export function formatRoughly(seconds: number): string {
  if (seconds < 55) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function formatPixels(width: number, height: number): string {
  const megapixels = (width * height) / 1e6;
  const size = `${count.format(width)} × ${count.format(height)}`;
  return megapixels < 1 ? size : `${size} · ${Number(megapixels.toPrecision(3))} MP`;
}
