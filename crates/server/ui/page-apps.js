// Orders and the outbox.
import { html, useState } from "./html.js";
import { post, useResource } from "./api.js";
import * as format from "./format.js";
import { Act, Ask, Badge, Facts, State, Table, Time } from "./parts.js";

export function Orders() {
  const books = useResource("/v1/orders/check", { interval: 10000 });
  return html`<${State} of=${books}>
    ${(body) => html`<p class=${body.balanced ? "fine" : "problem"}>
        ${body.balanced ? "The books balance." : "The books do not balance."}
        ${` Accepted ${format.count(body.accepted)} = processed ${format.count(body.processed)} + rejected ${format.count(body.rejected)} + in flight ${format.count(body.in_flight)} + dead ${format.count(body.dead)}.`}
      </p>
      <${Facts}
        of=${[
          ["notified", format.count(body.notified)],
          ["undecodable", format.count(body.poison)],
          ["stranded", format.count(body.stranded)],
          ["done by others", format.count(body.by_others)],
        ]}
      />
      ${body.lost.length > 0 && html`<p class="problem">Not found anywhere: ${body.lost.join(", ")}</p>`}
      <div class="buttons"><button onClick=${books.again}>Check now</button></div>`}
  <//>`;
}

const STATUSES = ["", "NEW", "PROCESSING", "SENT", "FAILED"];

export function Outbox({ isAdmin }) {
  const stats = useResource("/v1/outbox");
  const [status, choose] = useState("");
  const events = useResource(`/v1/outbox/events?max=200${status && `&status=${status}`}`, { interval: 5000 });
  const done = () => Promise.all([stats.again(), events.again()]);
  const retry = (body) => async () => {
    await post("/v1/outbox/retry", body);
    await done();
  };
  return html`<${State} of=${stats}>
      ${(body) => html`<${Facts}
          of=${[
            ["new", format.count(body.new)],
            ["failed", format.count(body.failed)],
            ["sent", format.count(body.sent)],
            ["oldest new", format.duration(body.oldest_age_seconds)],
          ]}
        />
        ${body.failed > 0 &&
        isAdmin &&
        html`<${Ask} label="Retry failed…" kind="primary" title=${`Retry ${format.plural(body.failed, "event")}`} text="The relay sends them again, in their order." button=${`Retry ${format.plural(body.failed, "event")}`} act=${retry({ all: true })} />`}`}
    <//>
    <h2>Events</h2>
    <label>Status<select value=${status} onChange=${(event) => choose(event.target.value)}>${STATUSES.map((name) => html`<option value=${name}>${name || "all"}</option>`)}</select></label>
    <${State} of=${events}>
      ${(all) => html`<${Table}
        caption="Events"
        rows=${all}
        keyOf=${(event) => event.id}
        empty="No event matches."
        columns=${[
          { title: "Position", isNumber: true, of: (event) => event.seq },
          { title: "Type", of: (event) => event.event_type },
          { title: "About", of: (event) => `${event.aggregate_type} ${event.aggregate_id}` },
          { title: "Status", of: (event) => html`<${Badge} kind=${event.status === "FAILED" ? "bad" : "plain"}>${event.status}<//>` },
          { title: "Created", isMinor: true, of: (event) => html`<${Time} at=${event.created_at} />` },
          { title: "Error", isMinor: true, of: (event) => event.error ?? event.flaw ?? "" },
          {
            title: "Action",
            of: (event) => isAdmin && event.status === "FAILED" && html`<${Act} label="Retry" act=${retry({ id: event.id })} />`,
          },
        ]}
      />`}
    <//>`;
}
