/** Deeper than any request and any description of a model, and far less deep than would cost a parser its memory. */
const deepest = 32;

function isTooDeep(json: string): boolean {
  let depth = 0;
  for (let at = 0; at < json.length; at++) {
    const character = json.charCodeAt(at);
    if (character === 0x22) {
      for (at++; at < json.length && json.charCodeAt(at) !== 0x22; at++) if (json.charCodeAt(at) === 0x5c) at++;
    } else if (character === 0x7b || character === 0x5b) {
      if (++depth > deepest) return true;
    } else if (character === 0x7d || character === 0x5d) depth--;
  }
  return false;
}

/** The JSON object that bytes are, or what is wrong with them: `is not UTF-8`. */
export function parseJsonObject(bytes: Uint8Array): object | string {
  let json: string;
  try {
    json = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return 'is not UTF-8';
  }
  if (isTooDeep(json)) return `is nested more than ${deepest} deep`;
  try {
    const value: unknown = JSON.parse(json);
    return value !== null && typeof value === 'object' && !Array.isArray(value) ? value : 'is not a JSON object';
  } catch (error) {
    return `is not JSON: ${(error as Error).message}`;
  }
}
