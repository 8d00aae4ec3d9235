/** 1536 -> "1.5 KiB". */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${significant(bytes / 1024 ** power)} ${units[power]}`;
}

/** 12345678 -> "12.3 M". */
export function formatCount(count: number): string {
  const units = ['', ' k', ' M', ' G', ' T'];
  const power = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  return `${significant(count / 1000 ** power)}${units[power]}`;
}

/** 4096 -> "4k", 600 -> "600". */
export function formatTokens(tokens: number): string {
  return tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}k` : String(Math.round(tokens));
}

/** 72.4 -> "1 min 12 s", 3.21 -> "3.2 s". */
export function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Three significant digits without an exponent: 1234.5 -> "1235", 12.345 -> "12.3". */
export function significant(value: number): string {
  const size = Math.abs(value);
  if (size === 0 || size >= 100) return String(Math.round(value));
  return value
    .toFixed(Math.min(6, 2 - Math.floor(Math.log10(size))))
    .replace(/(\.\d*?)0+$/, '$1')
    .replace(/\.$/, '');
}
