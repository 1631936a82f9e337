// The HTTP API of the same server. Addresses are relative, so the page also works below a path of a proxy.

/** An answer that is no success. `message` is for people. */
export class Problem extends Error {
  constructor(title, detail, status = 0) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}

const TOKEN = "firstlight.token";
let kept = null;

/** The token for writing, kept for this tab only. */
export function token() {
  try {
    return kept ?? sessionStorage.getItem(TOKEN);
  } catch {
    return kept;
  }
}

export function keepToken(value) {
  kept = value || null;
  try {
    if (kept) sessionStorage.setItem(TOKEN, kept);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // Storage may be forbidden; `kept` lasts as long as the page.
  }
}

async function problemOf(response) {
  let body = {};
  try {
    body = (await response.json()) ?? {};
  } catch {
    // Some proxies answer in HTML: the status has to do.
  }
  const words = (value) => (typeof value === "string" && value ? value : null);
  const title = words(body.title) ?? (response.statusText || `Error ${response.status}`);
  return new Problem(title, words(body.detail) ?? `The server answered ${response.status}.`, response.status);
}

async function call(path, { method = "GET", json, body, write = false, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (json !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(json);
  }
  if (write && token()) headers.Authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer", "Check that it is running, then try again.");
  }
  if (!response.ok) throw await problemOf(response);
  if (write) dispatchEvent(new Event("firstlight:changed"));
  if (response.status === 204) return null;
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The answer cannot be read", "The server sent something other than JSON.", response.status);
  }
}

const name = encodeURIComponent;

export const users = (query, limit, signal) => call(`v1/users?query=${name(query)}&limit=${limit}`, { signal });
export const user = (id, limit, signal) => call(`v1/users/${name(id)}?limit=${limit}`, { signal });
export const items = (query, limit, signal) => call(`v1/items?query=${name(query)}&limit=${limit}`, { signal });
export const item = (id, signal) => call(`v1/items/${name(id)}`, { signal });
export const map = (signal) => call("v1/map?limit=5000", { signal });
export const version = () => call("version");
export const coverOf = (id) => `v1/items/${name(id)}/cover`;
export const recommend = (request, signal) => call("v1/recommend", { method: "POST", json: request, signal });
export const similar = (id, k, signal) => call("v1/similar", { method: "POST", json: { item: id, k }, signal });
export const recommendBatch = (requests) => call("v1/recommend/batch", { method: "POST", json: { requests } });
export const add = (form, replace) =>
  call(`v1/items?replace=${replace}`, { method: "POST", body: form, write: true });
export const remove = (id) => call(`v1/items/${name(id)}`, { method: "DELETE", write: true });
