// Problems first, then the flow through the queues.
import { html } from "./html.js";
import { rate, segment, useResource } from "./api.js";
import * as format from "./format.js";
import { Badge, Facts, State, Table, Time } from "./parts.js";

/** Where a problem of this rule is looked at. */
function placeOf(problem) {
  const rule = problem.problem;
  const subject = segment(problem.subject || "");
  if (["dead_letters", "messages_dying"].includes(rule)) return `#/dead-letters?queue=${subject}`;
  if (["backlog_old", "deliveries_failing", "sink_failing"].includes(rule)) return `#/queues`;
  if (rule === "stream_behind") return "#/streams";
  if (rule.startsWith("outbox")) return "#/outbox";
  if (rule.startsWith("agents") || rule === "rollout_stopped") return "#/fleet";
  return "#/health";
}

export function Overview({ problems }) {
  const queues = useResource("/v1/queues");
  return html`<section aria-labelledby="problems">
      <h2 id="problems">Problems</h2>
      <${State} of=${problems}>
        ${(all) =>
          all.length === 0
            ? html`<p class="fine">No problems.</p>`
            : all.map(
                (one) => html`<article class=${`problem ${one.severity === "page" ? "" : "ticket"}`}>
                  <p>
                    <strong>${[one.problem.replaceAll("_", " "), one.subject, one.figure].filter(Boolean).join(" · ")}</strong>
                    <${Badge} kind=${one.severity === "page" ? "bad" : "warn"}>${one.severity}<//>
                  </p>
                  <p>${one.cause}</p>
                  <p>${one.next_step}</p>
                  <p class="quiet">since <${Time} at=${one.since} /> · runbook: ${one.runbook} · <a href=${placeOf(one)}>look at it</a></p>
                </article>`,
              )}
      <//>
    </section>
    <section aria-labelledby="flow">
      <h2 id="flow">Flow</h2>
      <${State} of=${queues}>${(all) => html`<${Flow} all=${all} of=${queues} />`}<//>
    </section>`;
}

function Flow({ all, of }) {
  const sum = (field) => all.reduce((total, queue) => total + queue[field], 0);
  const total = (field) => (body) => body.reduce((number, queue) => number + queue[field], 0);
  const oldest = Math.max(...all.map((queue) => queue.oldest_ready_age_seconds ?? -1));
  const busy = all
    .filter((queue) => queue.ready + queue.leased + queue.delayed + queue.dead + queue.enqueued > 0)
    .sort((one, other) => other.ready - one.ready || other.enqueued - one.enqueued)
    .slice(0, 10);
  return html`<${Facts}
      of=${[
        ["in", format.perSecond(rate(of, total("enqueued")))],
        ["acked", format.perSecond(rate(of, total("acked")))],
        ["ready", format.count(sum("ready"))],
        ["leased", format.count(sum("leased"))],
        ["delayed", format.count(sum("delayed"))],
        ["dead letters", format.count(sum("dead"))],
        ["oldest ready", oldest < 0 ? "none waits" : format.duration(oldest)],
      ]}
    />
    <${Table}
      caption="Busiest queues"
      rows=${busy}
      keyOf=${(queue) => queue.queue}
      empty="No queue has had a message yet. Send one: towpath send messages hello"
      columns=${[
        { title: "Queue", of: (queue) => html`<a href=${`#/queues/${segment(queue.queue)}`}>${queue.queue}</a>` },
        { title: "Ready", isNumber: true, of: (queue) => format.count(queue.ready) },
        { title: "Leased", isNumber: true, isMinor: true, of: (queue) => format.count(queue.leased) },
        { title: "Dead", isNumber: true, of: (queue) => format.count(queue.dead) },
        { title: "Enqueued", isNumber: true, isMinor: true, of: (queue) => format.count(queue.enqueued) },
        { title: "Acked", isNumber: true, isMinor: true, of: (queue) => format.count(queue.acked) },
      ]}
    />`;
}
