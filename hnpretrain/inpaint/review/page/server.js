// What the page asks the server.

// An answer that is late counts as none: the page must not wait for ever with its keys locked.
const PATIENCE = 20000;

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // of HTTP; 0 where there was no answer
  }
}

async function ask(path, reviewer, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers: { "X-Reviewer": reviewer, ...options.headers },
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (response.ok) return await response.json();
    throw new Refused((await response.text()).trim() || response.statusText, response.status);
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused("the server does not answer (is it still running?)", 0);
  }
}

export const hello = () => ask("/api/hello", "");
export const review = (reviewer) => ask("/api/review", reviewer);
export const proposal = (reviewer, id) => ask("/api/proposals/" + encodeURIComponent(id), reviewer);
export const decide = (reviewer, asked) =>
  ask("/api/decisions", reviewer, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
  });

export function picture(kind, id, candidate = "") {
  const query = candidate ? "?candidate=" + encodeURIComponent(candidate) : "";
  return `/images/${kind}/${encodeURIComponent(id)}${query}`;
}

// Why a picture could not be shown, in the server's words.
export async function whyBroken(path) {
  try {
    const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE) });
    return response.ok ? "the browser cannot show it" : (await response.text()).trim();
  } catch {
    return "the server does not answer";
  }
}
