// Addresses, navigation and the sign-in.
import { html, render, useEffect, useRef, useState } from "./html.js";
import { call, post, useFreshness, useResource, whenSignedOut } from "./api.js";
import * as format from "./format.js";
import { Refused } from "./parts.js";
import { Overview } from "./page-overview.js";
import { Queues, Queue } from "./page-queues.js";
import { DeadLetters } from "./page-dead-letters.js";
import { Streams, Stream, Audit } from "./page-streams.js";
import { Orders, Outbox } from "./page-apps.js";
import { Fleet, Tasks } from "./page-fleet.js";
import { Health } from "./page-health.js";

/** Address, title in the navigation, page, and the scope without which it shows nothing. */
const PAGES = [
  ["", "Overview", Overview],
  ["queues", "Queues", Queues],
  ["dead-letters", "Dead letters", DeadLetters],
  ["streams", "Streams", Streams],
  ["orders", "Orders", Orders],
  ["outbox", "Outbox", Outbox],
  ["fleet", "Fleet", Fleet],
  ["tasks", "Tasks", Tasks],
  ["audit", "Audit", Audit],
  ["health", "Health", Health],
];

/** The address: parts of the path, and the query. It is behind `#`, so that it works below any prefix. */
function parse() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decode), query: new URLSearchParams(query || "") };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function useAddress() {
  const [address, set] = useState(parse);
  useEffect(() => {
    const changed = () => set(parse());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return address;
}

function Freshness() {
  const { isPaused, problem, age, toggle } = useFreshness();
  const text = isPaused
    ? "Paused"
    : problem
      ? `Stale for ${format.duration((age || 0) / 1000)}: ${problem}`
      : age === null
        ? "Loading"
        : age > 6000
          ? `Stale for ${format.duration(age / 1000)}`
          : "Live";
  return html`<span>${text}</span><button aria-pressed=${isPaused} onClick=${toggle}>${isPaused ? "Resume updates" : "Pause updates"}</button>`;
}

function Theme() {
  const [theme, set] = useState(document.documentElement.dataset.theme || "system");
  const choose = (event) => {
    const chosen = event.target.value;
    set(chosen);
    if (chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    try {
      if (chosen === "system") localStorage.removeItem("towpath.theme");
      else localStorage.setItem("towpath.theme", chosen);
    } catch {
      // Without storage the choice lasts until the page is left.
    }
  };
  return html`<label>Theme<select value=${theme} onChange=${choose}><option>system</option><option>light</option><option>dark</option></select></label>`;
}

function Dashboard({ session, signOut }) {
  const address = useAddress();
  const heading = useRef();
  const problems = useResource("/v1/problems");
  const name = address.parts[0] || "";
  const [, title, Page] = PAGES.find(([path]) => path === name) || [null, "Not found", NotFound];
  const subject = address.parts[1];
  const found = problems.body?.length || 0;
  useEffect(() => {
    document.title = `${found ? `(${found}) ` : ""}${subject ? `${subject} · ` : ""}${title} · Towpath`;
  }, [found, subject, title]);
  const key = address.parts.slice(0, 2).join("/");
  const isFirst = useRef(true);
  useEffect(() => {
    if (isFirst.current) isFirst.current = false;
    else heading.current?.focus();
  }, [key]);
  const isAdmin = session.scopes.includes("admin");
  const may = (scope) => isAdmin || session.scopes.some((own) => own === scope || own === scope.replace(/:[^:]*:/, ":*:"));
  const props = { address, may, isAdmin, problems };
  const Chosen = subject && name === "queues" ? Queue : subject && name === "streams" ? Stream : Page;
  return html`<div class="page">
    <a class="skip" href="#content" onClick=${(event) => (event.preventDefault(), heading.current?.focus())}>Skip to content</a>
    <header>
      <span class="brand">Towpath</span>
      <${Freshness} />
      <${Theme} />
      <span class="quiet">${session.name || session.actor}${isAdmin ? "" : `, ${session.scopes.join(" ")}`}</span>
      <button onClick=${signOut}>Sign out</button>
    </header>
    <nav aria-label="Pages">
      <ul>
        ${PAGES.map(
          ([path, text]) => html`<li>
            <a href=${`#/${path}`} aria-current=${path === name ? "page" : undefined}>
              ${text}${path === "" && found > 0 && html`<span class="badge bad"><span class="hidden">problems: </span>${found}</span>`}
            </a>
          </li>`,
        )}
      </ul>
    </nav>
    <main id="content">
      <h1 tabindex="-1" ref=${heading}>${subject ? `${title}: ${subject}` : title}</h1>
      <${Chosen} key=${key} ...${props} />
    </main>
    <div class="hidden" role="status">${found === 0 ? "No problems" : format.plural(found, "problem")}</div>
  </div>`;
}

const NotFound = () => html`<p>This address has no page. <a href="#/">Overview</a></p>`;

function SignIn({ done, problem: first }) {
  const [key, enter] = useState("");
  const [problem, refuse] = useState(first);
  const [isBusy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const { body } = await post("/v1/session", { key });
      done(body);
    } catch (error) {
      refuse(error);
      setBusy(false);
    }
  };
  return html`<main class="sign-in">
    <h1>Sign in to Towpath</h1>
    <p>Run <code>towpath dashboard</code> where Towpath runs: it makes a link that signs this browser in.</p>
    <form onSubmit=${submit}>
      <label>Or a key, or the token in <code>admin.token</code> of the data folder<input type="password" autocomplete="current-password" value=${key} onInput=${(event) => enter(event.target.value)} required /></label>
      <${Refused} problem=${problem} />
      <button class="primary" disabled=${isBusy}>Sign in</button>
    </form>
  </main>`;
}

function App() {
  const [session, set] = useState(undefined);
  const [problem, refuse] = useState(null);
  useEffect(() => {
    whenSignedOut(() => set(null));
    const code = /^#login=([\w-]+)$/.exec(location.hash)?.[1];
    // A code is used up, and belongs into no history.
    if (code) history.replaceState(null, "", location.pathname);
    const begin = code ? post("/v1/session", { code }) : call("GET", "/v1/session");
    begin.then(
      ({ body }) => set(body.scopes.length > 0 ? body : null),
      (error) => {
        refuse(error);
        set(null);
      },
    );
  }, []);
  const signOut = async () => {
    await call("DELETE", "/v1/session");
    set(null);
  };
  if (session === undefined) return null;
  if (session === null) return html`<${SignIn} done=${set} problem=${problem} />`;
  return html`<${Dashboard} session=${session} signOut=${signOut} />`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
