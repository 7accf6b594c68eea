// Shared parts of pages: tables, problems, dialogs, payloads.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import * as format from "./format.js";

/** A time, exact in its title. */
export const Time = ({ at }) => (at ? html`<time datetime=${at} title=${at}>${format.ago(at)}</time>` : format.unknown);

/** A refusal, in place. */
export const Refused = ({ problem, again }) =>
  problem &&
  html`<div class="problem" role="alert">
    <p><strong>${problem.status ? `HTTP ${problem.status}` : "No answer"}:</strong> ${problem.message}</p>
    ${problem.request && html`<p class="quiet">request ${problem.request}</p>`}
    ${again && html`<button onClick=${again}>Try again</button>`}
  </div>`;

/** What a resource says while it has no body, or beside an old one. */
export function State({ of, children }) {
  const [isSlow, set] = useState(false);
  const isEmpty = of.body === undefined;
  useEffect(() => {
    const timer = setTimeout(() => set(true), 200);
    return () => clearTimeout(timer);
  }, [isEmpty]);
  if (isEmpty && of.problem) return html`<${Refused} problem=${of.problem} again=${of.again} />`;
  if (isEmpty) return isSlow ? html`<p class="quiet" aria-busy="true">Loading…</p>` : null;
  return html`${of.problem && html`<${Refused} problem=${of.problem} again=${of.again} />`}
    ${of.missing.length > 0 &&
    html`<p class="problem" role="alert">${of.missing.join(", ")} did not answer: its part of the list is missing.</p>`}
    ${children(of.body)}`;
}

/** A table in a region that scrolls alone. Columns: `{title, of, isNumber, isMinor}`. */
export function Table({ caption, columns, rows, keyOf, empty }) {
  if (rows.length === 0) return html`<p class="quiet">${empty}</p>`;
  const kind = (column) => [column.isNumber && "number", column.isMinor && "minor"].filter(Boolean).join(" ") || undefined;
  return html`<div class="scroll" role="region" tabindex="0" aria-label=${caption}>
    <table>
      <caption class="hidden">${caption}</caption>
      <thead>
        <tr>
          ${columns.map((column) => html`<th scope="col" class=${kind(column)}>${column.title}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) => html`<tr key=${keyOf(row)}>
            ${columns.map((column, at) => {
              const cell = column.of(row);
              return at === 0
                ? html`<th scope="row" class=${kind(column)}>${cell}</th>`
                : html`<td class=${kind(column)}>${cell}</td>`;
            })}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** Names with their figures. */
export const Facts = ({ of }) =>
  html`<dl class="facts">${of.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;

export const Badge = ({ kind, children }) => html`<span class=${`badge ${kind}`}>${children}</span>`;

/** A question with a button that says what happens; with `typed`, that text has to be entered first. */
export function Confirm({ title, text, button, typed, act, close }) {
  const [entered, enter] = useState("");
  const [problem, refuse] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const dialog = useRef();
  useLayoutEffect(() => {
    const opener = document.activeElement;
    dialog.current.showModal();
    return () => opener?.focus?.();
  }, []);
  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await act();
      close();
    } catch (error) {
      refuse(error);
      setBusy(false);
    }
  };
  return html`<dialog ref=${dialog} onClose=${close} aria-labelledby="question">
    <form onSubmit=${run}>
      <h2 id="question">${title}</h2>
      <p>${text}</p>
      ${typed &&
      html`<label>Enter <code>${typed}</code> to confirm<input value=${entered} onInput=${(event) => enter(event.target.value)} autocomplete="off" /></label>`}
      <${Refused} problem=${problem} />
      <p class="buttons">
        <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
        <button class=${typed ? "danger" : "primary"} disabled=${isBusy || (typed && entered !== typed)}>${button}</button>
      </p>
    </form>
  </dialog>`;
}

/** A button that asks first. */
export function Ask({ label, kind, disabled, ...question }) {
  const [isOpen, open] = useState(false);
  return html`<button class=${kind} disabled=${disabled} onClick=${() => open(true)}>${label}</button>
    ${isOpen && html`<${Confirm} ...${question} close=${() => open(false)} />`}`;
}

/** A button that acts at once, with its refusal beside it. */
export function Act({ label, act, done, kind }) {
  const [problem, refuse] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const run = async () => {
    setBusy(true);
    refuse(null);
    try {
      await act();
      await done?.();
    } catch (error) {
      refuse(error);
    }
    setBusy(false);
  };
  return html`<button class=${kind} disabled=${isBusy} onClick=${run}>${label}</button><${Refused} problem=${problem} />`;
}

/** A payload as text, indented where it is JSON; numbers stay as they are written. */
export function Payload({ of }) {
  const [isRaw, show] = useState(false);
  const pretty = of.encoding === "utf-8" ? indent(of.payload) : null;
  const text = pretty !== null && !isRaw ? pretty : of.payload;
  return html`<figure class="payload">
    <figcaption>
      ${of.encoding === "utf-8" ? "text" : of.encoding}${of.truncated ? ", the beginning of it" : ""}
      ${pretty !== null && html`<button onClick=${() => show(!isRaw)}>${isRaw ? "Indent" : "As sent"}</button>`}
      <${Copy} text=${of.payload} />
    </figcaption>
    <pre tabindex="0">${text}</pre>
  </figure>`;
}

/** JSON with line breaks, without parsing its numbers; null for other text. */
export function indent(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  let [out, depth, at] = ["", 0, 0];
  const line = () => `\n${"  ".repeat(depth)}`;
  while (at < text.length) {
    const character = text[at];
    if (character === '"') {
      const end = /"(?:[^"\\]|\\.)*"/y;
      end.lastIndex = at;
      const [string] = end.exec(text);
      out += string;
      at += string.length;
      continue;
    }
    at += 1;
    if (/\s/.test(character)) continue;
    if ("{[".includes(character)) {
      const close = /\s*[}\]]/y;
      close.lastIndex = at;
      const empty = close.exec(text);
      if (empty) {
        out += character + empty[0].trim();
        at += empty[0].length;
        continue;
      }
      depth += 1;
      out += character + line();
    } else if ("}]".includes(character)) {
      depth -= 1;
      out += line() + character;
    } else if (character === ",") out += character + line();
    else if (character === ":") out += ": ";
    else out += character;
  }
  return out;
}

function Copy({ text }) {
  const [isDone, set] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without a secure context there is no clipboard.
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    set(true);
    setTimeout(() => set(false), 2000);
  };
  return html`<button onClick=${copy}>${isDone ? "Copied" : "Copy"}</button>`;
}

/** Headers of a message. */
export const Headers = ({ of }) => {
  const names = Object.keys(of || {});
  return names.length > 0 && html`<${Facts} of=${names.map((name) => [name, of[name]])} />`;
};
