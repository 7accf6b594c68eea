// Streams: is a group behind, and what is in it. The audit log is one of them.
import { html, useEffect, useRef, useState } from "./html.js";
import { get, rate, segment, useResource } from "./api.js";
import * as format from "./format.js";
import { Facts, Headers, Payload, Refused, State, Table, Time } from "./parts.js";

/** Entries that a tail keeps. */
const KEPT = 200;

const AUDIT = "towpath.audit";

export function Streams() {
  const streams = useResource("/v1/streams");
  return html`<${State} of=${streams}>
    ${(all) => html`<${Table}
      caption="Streams"
      rows=${all}
      keyOf=${(stream) => stream.stream}
      empty="No stream has entries yet."
      columns=${[
        { title: "Stream", of: (stream) => html`<a href=${`#/streams/${segment(stream.stream)}`}>${stream.stream}</a>` },
        { title: "Entries", isNumber: true, of: (stream) => format.count(stream.entries) },
        { title: "Appended", isNumber: true, isMinor: true, of: (stream) => format.perSecond(rate(streams, (body) => body.find((one) => one.stream === stream.stream)?.appended)) },
        { title: "Groups", isNumber: true, isMinor: true, of: (stream) => format.count(stream.groups.length) },
        { title: "Largest lag", isNumber: true, of: (stream) => (stream.groups.length ? format.count(Math.max(...stream.groups.map((group) => group.lag ?? 0))) : "no group") },
      ]}
    />`}
  <//>`;
}

export function Stream({ address }) {
  const name = address.parts[1];
  const stream = useResource(`/v1/streams/${segment(name)}`);
  return html`<${State} of=${stream}>
      ${(body) => html`<${Facts}
          of=${[
            ["entries", format.count(body.entries)],
            ["appended", format.perSecond(rate(stream, (one) => one.appended))],
            ["oldest", body.first ?? format.unknown],
            ["newest", body.last ?? format.unknown],
          ]}
        />
        <h2>Groups</h2>
        <${Groups} of=${body.groups} resource=${stream} />`}
    <//>
    <h2>Entries</h2>
    <${Tail} name=${name} />`;
}

function Groups({ of, resource }) {
  const caughtUp = (group) => {
    const before = resource.before?.body.groups.find((one) => one.group === group.group)?.lag;
    if (group.lag === 0) return "now";
    if (before === undefined || before <= group.lag) return "never at this rate";
    return format.duration((group.lag * (resource.at - resource.before.at)) / 1000 / (before - group.lag));
  };
  return html`<${Table}
    caption="Groups"
    rows=${of}
    keyOf=${(group) => group.group}
    empty="No group reads this stream."
    columns=${[
      { title: "Group", of: (group) => group.group },
      { title: "Lag", isNumber: true, of: (group) => format.count(group.lag) },
      { title: "Pending", isNumber: true, of: (group) => format.count(group.pending) },
      { title: "Caught up in", isNumber: true, of: caughtUp },
    ]}
  />`;
}

/** Entries as they come, newest first; from the newest or from the beginning. */
function useTail(name, start) {
  const [state, set] = useState({ entries: [], skipped: 0, problem: null });
  const [isPaused, pause] = useState(false);
  const paused = useRef(false);
  paused.current = isPaused;
  useEffect(() => {
    let isOver = false;
    let timer;
    let after = start === "beginning" ? null : start;
    set({ entries: [], skipped: 0, problem: null });
    const read = async () => {
      try {
        if (!paused.current && document.visibilityState === "visible") {
          const query = after ? `&after=${segment(after)}` : "";
          const { body } = await get(`/v1/streams/${segment(name)}/entries?max=1000${query}`);
          if (isOver) return;
          if (body.length > 0) {
            after = body.at(-1).offset;
            set((old) => {
              const entries = [...body.reverse(), ...old.entries];
              const skipped = old.skipped + Math.max(0, entries.length - KEPT);
              return { entries: entries.slice(0, KEPT), skipped, problem: null };
            });
          } else set((old) => (old.problem ? { ...old, problem: null } : old));
        }
      } catch (problem) {
        if (isOver) return;
        set((old) => ({ ...old, problem }));
      }
      timer = setTimeout(read, 1000);
    };
    read();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [name, start]);
  return { ...state, isPaused, pause };
}

function Tail({ name }) {
  const [start, choose] = useState("beginning");
  const [text, filter] = useState("");
  const stream = useResource(`/v1/streams/${segment(name)}`, { isLive: false });
  const tail = useTail(name, start);
  const shown = tail.entries.filter((entry) => !text || entry.payload.includes(text) || entry.key?.includes(text));
  return html`<div class="buttons">
      <label>Contains<input value=${text} onInput=${(event) => filter(event.target.value)} /></label>
      <button aria-pressed=${tail.isPaused} onClick=${() => tail.pause(!tail.isPaused)}>${tail.isPaused ? "Go on" : "Hold"}</button>
      <button onClick=${() => choose("beginning")}>From the oldest</button>
      <button disabled=${!stream.body?.last} onClick=${async () => choose((await get(`/v1/streams/${segment(name)}`)).body.last)}>New ones only</button>
    </div>
    <p class="quiet">${format.plural(shown.length, "entry", "entries")}, newest first${tail.skipped > 0 ? `; ${format.count(tail.skipped)} older ones not shown` : ""}</p>
    <${Refused} problem=${tail.problem} />
    <${Table}
      caption="Entries"
      rows=${shown}
      keyOf=${(entry) => entry.offset}
      empty="No entry yet."
      columns=${[
        { title: "Offset", of: (entry) => html`<code>${entry.offset}</code>` },
        { title: "Time", of: (entry) => html`<${Time} at=${entry.appended_at} />` },
        { title: "Key", isMinor: true, of: (entry) => entry.key ?? "" },
        {
          title: "Payload",
          of: (entry) => html`<details>
            <summary><code>${entry.payload.slice(0, 80)}</code></summary>
            <${Headers} of=${entry.headers} /><${Payload} of=${entry} />
          </details>`,
        },
      ]}
    />`;
}

export function Audit() {
  const tail = useTail(AUDIT, "beginning");
  const [text, filter] = useState("");
  const rows = tail.entries.flatMap((entry) => {
    try {
      return [{ offset: entry.offset, ...JSON.parse(entry.payload) }];
    } catch {
      return [];
    }
  });
  const shown = rows.filter((row) => !text || JSON.stringify(row).includes(text));
  return html`<label>Contains<input value=${text} onInput=${(event) => filter(event.target.value)} /></label>
    <${Refused} problem=${tail.problem} />
    <p class="quiet">Newest first${tail.skipped > 0 ? `; ${format.count(tail.skipped)} older ones: towpath audit` : ""}.</p>
    <${Table}
      caption="Audit log"
      rows=${shown}
      keyOf=${(row) => row.offset}
      empty="No entry yet."
      columns=${[
        { title: "Time", of: (row) => html`<${Time} at=${row.time} />` },
        { title: "Event", of: (row) => row.event },
        { title: "Who", of: (row) => row.actor ?? "" },
        { title: "From", isMinor: true, of: (row) => row.client ?? "" },
        { title: "Action", of: (row) => row.action ?? row.reason ?? "" },
        { title: "Object", isMinor: true, of: (row) => row.object ?? "" },
        { title: "Status", isNumber: true, isMinor: true, of: (row) => row.status ?? "" },
      ]}
    />`;
}
