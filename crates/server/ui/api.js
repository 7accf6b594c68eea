// The one way to the server: requests to /v1, and resources that are read again while the page is visible.
import { useEffect, useRef, useState } from "./html.js";

/** Interval of reads, in milliseconds. */
const INTERVAL = 2000;

/** Time after which a request counts as failed, in milliseconds. */
const DEADLINE = 10000;

/** A refusal of the server, or no answer. */
export class Problem extends Error {
  constructor(status, detail, request) {
    super(detail);
    this.status = status;
    this.request = request;
  }
}

/** Called with `true` when the server asks for a sign-in. */
let onSignedOut = () => {};
export const whenSignedOut = (call) => {
  onSignedOut = call;
};

const freshness = { at: 0, isPaused: false, problem: null, listeners: new Set() };
const tell = () => freshness.listeners.forEach((listener) => listener());

/** How current the page is, and a switch that pauses reads. */
export function useFreshness() {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((count) => count + 1);
    freshness.listeners.add(listener);
    const timer = setInterval(listener, 1000);
    return () => {
      freshness.listeners.delete(listener);
      clearInterval(timer);
    };
  }, []);
  return {
    isPaused: freshness.isPaused,
    problem: freshness.problem,
    age: freshness.at ? Date.now() - freshness.at : null,
    toggle: () => {
      freshness.isPaused = !freshness.isPaused;
      tell();
    },
  };
}

/** The body of an answer, and its headers. */
export async function call(method, path, { body, headers = {}, isText = false } = {}) {
  const isJson = body !== undefined && !isText;
  let response;
  try {
    response = await fetch(path.replace(/^\//, ""), {
      method,
      credentials: "same-origin",
      redirect: "error",
      signal: AbortSignal.timeout(DEADLINE),
      headers: { Accept: "application/json", ...(isJson ? { "Content-Type": "application/json" } : {}), ...headers },
      body: isJson ? JSON.stringify(body) : body,
    });
  } catch (error) {
    const detail = error.name === "TimeoutError" ? "no answer within 10 s" : "the server does not answer";
    throw new Problem(0, detail);
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    answer = text;
  }
  if (!response.ok) {
    if (response.status === 401 && !path.includes("/v1/session")) onSignedOut();
    const detail = answer?.detail || answer?.title || `HTTP ${response.status}`;
    throw new Problem(response.status, detail, response.headers.get("x-request-id"));
  }
  return { body: answer, headers: response.headers };
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, { body });

/** A resource that is read every two seconds: its newest body, the one before, and why the last read failed. */
export function useResource(path, { isLive = true, interval = INTERVAL } = {}) {
  const [state, set] = useState({ path: null, body: undefined, problem: null, at: 0, before: null, missing: [] });
  const again = useRef(() => {});
  useEffect(() => {
    if (!path) return undefined;
    let isOver = false;
    let timer;
    const read = async (isForced) => {
      clearTimeout(timer);
      const mayRead = isForced || (!freshness.isPaused && document.visibilityState === "visible");
      if (mayRead) {
        try {
          const { body, headers } = await get(path);
          if (isOver) return;
          const at = Date.now();
          const missing = (headers.get("towpath-unavailable") || "").split(",").map((one) => one.trim()).filter(Boolean);
          freshness.at = at;
          freshness.problem = null;
          set((old) => {
            const before = old.path === path && old.body !== undefined ? { body: old.body, at: old.at } : null;
            return { path, body, problem: null, at, before, missing };
          });
        } catch (problem) {
          if (isOver) return;
          if (!problem.status) freshness.problem = problem.message;
          set((old) => ({ ...(old.path === path ? old : { body: undefined, before: null, at: 0, missing: [] }), path, problem }));
        }
        tell();
      }
      if (!isOver && isLive) timer = setTimeout(() => read(false), interval);
    };
    again.current = () => read(true);
    read(true);
    const shown = () => document.visibilityState === "visible" && read(false);
    document.addEventListener("visibilitychange", shown);
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [path, isLive, interval]);
  const isOther = state.path !== path;
  return { ...(isOther ? { body: undefined, problem: null, before: null, at: 0, missing: [] } : state), again: () => again.current() };
}

/** The increase of a counter a second between the last two reads; null without two. */
export function rate(resource, find) {
  if (!resource.before || resource.at <= resource.before.at) return null;
  const [now, before] = [find(resource.body), find(resource.before.body)];
  if (now === undefined || before === undefined || now < before) return null;
  return ((now - before) * 1000) / (resource.at - resource.before.at);
}

export const segment = (name) => encodeURIComponent(name);
