// Queues: which one is behind, and why.
import { html, useMemo, useRef, useState } from "./html.js";
import { call, post, rate, segment, useResource } from "./api.js";
import * as format from "./format.js";
import { Act, Ask, Badge, Facts, Headers, Payload, Refused, State, Table, Time } from "./parts.js";
import { Letters } from "./page-dead-letters.js";

const Badges = ({ queue }) => html`${queue.paused && html`<${Badge} kind="warn">paused<//>`}
  ${queue.consumers === 0 && queue.ready > 0 && html`<${Badge} kind="bad">no consumer<//>`}
  ${queue.dead > 0 && html`<${Badge} kind="warn">dead letters<//>`}`;

const STATES = {
  all: () => true,
  waiting: (queue) => queue.ready > 0,
  paused: (queue) => queue.paused,
  "dead letters": (queue) => queue.dead > 0,
  "no consumer": (queue) => queue.consumers === 0,
};

export function Queues({ may }) {
  const queues = useResource("/v1/queues");
  const [text, filter] = useState("");
  const [state, choose] = useState("all");
  return html`<form class="buttons" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label>Name contains<input value=${text} onInput=${(event) => filter(event.target.value)} /></label>
      <label>State<select value=${state} onChange=${(event) => choose(event.target.value)}>${Object.keys(STATES).map((name) => html`<option>${name}</option>`)}</select></label>
    </form>
    <${State} of=${queues}>
      ${(all) => {
        const shown = all.filter((queue) => queue.queue.includes(text) && STATES[state](queue));
        const each = (field) => (queue) => rate(queues, (body) => body.find((one) => one.queue === queue.queue)?.[field]);
        const [enqueued, acked] = [each("enqueued"), each("acked")];
        const worst = (queue) => (queue.paused ? 4 : 0) + (queue.consumers === 0 && queue.ready > 0 ? 2 : 0) + (queue.dead > 0 ? 1 : 0);
        shown.sort((one, other) => worst(other) - worst(one) || other.ready - one.ready || one.queue.localeCompare(other.queue));
        return html`<p class="quiet">${format.count(shown.length)} of ${format.plural(all.length, "queue")}</p>
          <${Table}
            caption="Queues"
            rows=${shown}
            keyOf=${(queue) => queue.queue}
            empty="No queue matches."
            columns=${[
              { title: "Queue", of: (queue) => html`<a href=${`#/queues/${segment(queue.queue)}`}>${queue.queue}</a><${Badges} queue=${queue} />` },
              { title: "Ready", isNumber: true, of: (queue) => format.count(queue.ready) },
              { title: "Delayed", isNumber: true, isMinor: true, of: (queue) => format.count(queue.delayed) },
              { title: "Leased", isNumber: true, isMinor: true, of: (queue) => format.count(queue.leased) },
              { title: "Dead", isNumber: true, of: (queue) => format.count(queue.dead) },
              { title: "Oldest ready", isNumber: true, of: (queue) => format.duration(queue.oldest_ready_age_seconds) },
              { title: "In", isNumber: true, isMinor: true, of: (queue) => format.perSecond(enqueued(queue)) },
              { title: "Acked", isNumber: true, isMinor: true, of: (queue) => format.perSecond(acked(queue)) },
              { title: "Consumers", isNumber: true, isMinor: true, of: (queue) => format.count(queue.consumers) },
              {
                title: "Action",
                of: (queue) => may(`queue:${queue.queue}:admin`) && html`<${Pause} queue=${queue} done=${queues.again} />`,
              },
            ]}
          />`;
      }}
    <//>`;
}

function Pause({ queue, done }) {
  const verb = queue.paused ? "resume" : "pause";
  const label = html`${queue.paused ? "Resume" : "Pause"}<span class="hidden"> ${queue.queue}</span>`;
  return html`<${Act} label=${label} act=${() => post(`/v1/queues/${segment(queue.queue)}/${verb}`)} done=${done} />`;
}

/** Figures of the last minutes while the page is open. */
function useHistory(value, length = 120) {
  const points = useRef([]);
  return useMemo(() => {
    if (value !== null && value !== undefined) points.current = [...points.current, value].slice(-length);
    return points.current;
  }, [value]);
}

function Spark({ points, text }) {
  if (points.length < 2) return null;
  const most = Math.max(1, ...points);
  const line = points.map((point, at) => `${at ? "L" : "M"}${((at * 100) / (points.length - 1)).toFixed(1)} ${(19 - (point * 18) / most).toFixed(1)}`);
  return html`<svg class="chart" viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label=${text}><path d=${line.join("")} vector-effect="non-scaling-stroke" /></svg>`;
}

const TABS = [
  ["messages", "Messages"],
  ["dead-letters", "Dead letters"],
  ["send", "Send"],
];

export function Queue({ address, may }) {
  const name = address.parts[1];
  const tab = address.parts[2] || "messages";
  const path = `/v1/queues/${segment(name)}`;
  const queue = useResource(path);
  const incoming = rate(queue, (body) => body.enqueued);
  const acked = rate(queue, (body) => body.acked);
  const ready = useHistory(queue.at ? queue.body?.ready : null);
  const isOperator = may(`queue:${name}:admin`);
  const drain = (body) => {
    if (body.ready === 0) return "empty";
    if (incoming === null || acked === null) return format.unknown;
    return acked > incoming ? format.duration(body.ready / (acked - incoming)) : "never at this rate";
  };
  return html`<${State} of=${queue}>
    ${(body) => html`<p><${Badges} queue=${body} /></p>
      <${Facts}
        of=${[
          ["ready", html`${format.count(body.ready)} <${Spark} points=${ready} text=${`ready: from ${ready[0]} to ${ready.at(-1)} while this page is open`} />`],
          ["delayed", format.count(body.delayed)],
          ["leased", format.count(body.leased)],
          ["dead letters", format.count(body.dead)],
          ["oldest ready", format.duration(body.oldest_ready_age_seconds)],
          ["in", format.perSecond(incoming)],
          ["acked", format.perSecond(acked)],
          ["time to drain", drain(body)],
          ["consumers", format.count(body.consumers)],
          ["enqueued, ever", format.count(body.enqueued)],
          ["acked, ever", format.count(body.acked)],
          ["retried", format.count(body.retried)],
        ]}
      />
      ${isOperator &&
      html`<div class="buttons">
        <${Pause} queue=${body} done=${queue.again} />
        <${Ask}
          label="Purge…"
          kind="danger"
          title=${`Purge ${name}`}
          text=${`Deletes the ${format.plural(body.ready + body.delayed, "message")} that wait. Leased messages and dead letters stay. It cannot be undone.`}
          typed=${name}
          button=${`Delete ${format.plural(body.ready + body.delayed, "message")}`}
          act=${async () => {
            await post(`${path}/purge`);
            queue.again();
          }}
        />
        <${Ask}
          label="Delete queue…"
          kind="danger"
          title=${`Delete the queue ${name}`}
          text="Deletes the queue, its settings and its figures. A queue that is not empty is refused."
          typed=${name}
          button="Delete the queue"
          act=${async () => {
            await call("DELETE", path);
            location.hash = "#/queues";
          }}
        />
      </div>`}`}
  <//>
  <ul class="tabs">
    ${TABS.map(([at, text]) => html`<li><a href=${`#/queues/${segment(name)}/${at}`} aria-current=${at === tab ? "page" : undefined}>${text}</a></li>`)}
  </ul>
  ${tab === "messages" && html`<${Messages} path=${path} />`}
  ${tab === "dead-letters" && html`<${Letters} name=${name} may=${may} />`}
  ${tab === "send" && (may(`queue:${name}:write`) ? html`<${Send} name=${name} />` : html`<p>Sending needs the scope <code>queue:${name}:write</code>.</p>`)}`;
}

function Messages({ path }) {
  const messages = useResource(`${path}/messages?max=100`);
  return html`<${State} of=${messages}>
    ${(all) => html`${all.length === 100 && html`<p class="quiet">The oldest 100 messages that wait.</p>`}
      <${Table}
        caption="Messages"
        rows=${all}
        keyOf=${(message) => message.id}
        empty="No message waits."
        columns=${[
          { title: "Id", of: (message) => html`<code>${message.id}</code>` },
          { title: "State", of: (message) => message.place },
          { title: "Enqueued", of: (message) => html`<${Time} at=${message.enqueued_at} />` },
          { title: "Attempts", isNumber: true, isMinor: true, of: (message) => format.count(message.attempts) },
          { title: "Key", isMinor: true, of: (message) => message.key ?? "" },
          {
            title: "Payload",
            of: (message) => html`<details>
              <summary>${format.bytes(message.payload.length)}: <code>${message.payload.slice(0, 60)}</code></summary>
              <${Headers} of=${message.headers} /><${Payload} of=${message} />
            </details>`,
          },
        ]}
      />`}
  <//>`;
}

function Send({ name }) {
  const [payload, enter] = useState("");
  const [key, setKey] = useState("");
  const [delay, setDelay] = useState("");
  const [sent, show] = useState(null);
  const [problem, refuse] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    refuse(null);
    // A second click of this form, or a retry of the browser, is the same message.
    const headers = { "Content-Type": "application/octet-stream", "Idempotency-Key": `dashboard-${Date.now()}-${Math.random()}` };
    if (key) headers["Towpath-Key"] = key;
    if (delay) headers["Towpath-Delay"] = delay;
    try {
      const { body } = await call("POST", `/v1/queues/${segment(name)}/messages`, { body: payload, headers, isText: true });
      show(body);
    } catch (error) {
      refuse(error);
    }
  };
  return html`<form onSubmit=${submit}>
    <label>Payload<textarea value=${payload} onInput=${(event) => enter(event.target.value)}></textarea></label>
    <label>Key (messages of one key keep their order)<input value=${key} onInput=${(event) => setKey(event.target.value)} /></label>
    <label>Delay in seconds<input type="number" min="0" value=${delay} onInput=${(event) => setDelay(event.target.value)} /></label>
    <${Refused} problem=${problem} />
    <div class="buttons"><button class="primary">Send</button></div>
    ${sent && html`<p role="status">Sent: <code>${sent.id}</code></p>`}
  </form>`;
}
