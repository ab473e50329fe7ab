// The gateway's API: the secret, problem documents, and streams.

import { follow } from "./sse.js";

const KEY = "vlinders.secret";

/** What the gateway refused or could not do, in its own words. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `the gateway answered ${status}`);
    this.status = status;
    this.code = body.code ?? "";
    this.next = body.next_step ?? "";
    // Asking again changes nothing; what is unavailable may come back.
    this.final = status > 0 && status < 500;
  }

  /** Whether what was asked for is not there in this gateway, or not now. */
  get absent() {
    return this.status === 503 || this.status === 0 || (this.status === 404 && this.code === "unknown_endpoint");
  }
}

let secret = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
let onForbidden = () => {};

export const session = {
  get there() {
    return secret !== null;
  },
  /** Keeps the secret for this tab, or for this browser. */
  keep(text, remember) {
    secret = text;
    sessionStorage.setItem(KEY, text);
    if (remember) localStorage.setItem(KEY, text);
    else localStorage.removeItem(KEY);
  },
  forget() {
    secret = null;
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  },
  /** Called when the gateway does not take the secret. */
  set forbidden(action) {
    onForbidden = action;
  },
};

/** Whether the gateway takes a secret: true, false, or the problem that keeps it from saying so. */
export async function takes(text) {
  const response = await fetch("/internal/agents", { headers: { "X-Internal-Auth": text } });
  return response.status !== 403;
}

async function request(method, path, { body, signal, headers = {} } = {}) {
  const options = { method, signal, headers: { "X-Internal-Auth": secret ?? "", ...headers } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, { detail: "the gateway does not answer", next_step: "check that it runs and can be reached" });
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const problem = new Problem(response.status, said);
  if (response.status === 403) onForbidden(problem);
  throw problem;
}

const json = async (method, path, options) => (await request(method, path, options)).json();

export const get = (path, signal) => json("GET", path, { signal });
export const post = (path, body = {}) => json("POST", path, { body });

/** Starts a streamed request and lets go of the stream: the execution goes on. Returns its id. */
export async function begin(path, body) {
  const response = await request("POST", path, { body: { ...body, stream: true } });
  await response.body.cancel();
  return response.headers.get("x-execution-id");
}

/** The bytes of what is no JSON. */
export const raw = async (path, signal) => (await request("GET", path, { signal })).blob();
export const remove = (path) => json("DELETE", path);

/** `/health` needs no secret, and has a body whatever its status. */
export async function health(signal) {
  const response = await fetch("/health", { signal });
  return response.json();
}

/** `?a=1&b=2` of what is not empty. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length === 0 ? "" : `?${new URLSearchParams(given)}`;
}

/**
 * Follows a stream of the API. `event(name, data, id)` returns false to end it. A stream that breaks goes on behind
 * the last event that came, by `Last-Event-ID`, or by the path that `path(lastEventId)` gives.
 */
export function stream(path, { event, state, signal }) {
  const at = typeof path === "function" ? path : () => path;
  const open = (last) => request("GET", at(last), { signal, headers: last === null ? {} : { "Last-Event-ID": last } });
  return follow({ open, state, signal, event: ({ name, data, id }) => event(name, JSON.parse(data), id) });
}
