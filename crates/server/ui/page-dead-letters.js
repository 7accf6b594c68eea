// Dead letters: why they died, and how they live again.
import { html, useState } from "./html.js";
import { post, segment, useResource } from "./api.js";
import * as format from "./format.js";
import { Ask, Badge, Facts, Headers, Payload, State, Time } from "./parts.js";

/** Dead letters of a queue that are looked at. */
const MOST = 1000;

export function DeadLetters({ address, may }) {
  const queues = useResource("/v1/queues");
  const only = address.query.get("queue");
  return html`<${State} of=${queues}>
    ${(all) => {
      const found = all.filter((queue) => queue.dead > 0 && (!only || queue.queue === only));
      found.sort((one, other) => other.dead - one.dead);
      if (found.length === 0) return html`<p class="fine">No dead letters${only ? ` in ${only}` : ""}.</p>`;
      return html`${only && html`<p><a href="#/dead-letters">All queues</a></p>`}
      ${found.map(
        (queue) => html`<section key=${queue.queue}>
          <h2><a href=${`#/queues/${segment(queue.queue)}/dead-letters`}>${queue.queue}</a>: ${format.plural(queue.dead, "dead letter")}</h2>
          <${Letters} name=${queue.queue} may=${may} />
        </section>`,
      )}`;
    }}
  <//>`;
}

/** Groups of letters that died for the same reason, the largest first. */
function grouped(letters) {
  const groups = new Map();
  for (const letter of letters) {
    const reason = format.kindOf(letter.reason);
    if (!groups.has(reason)) groups.set(reason, { reason, letters: [] });
    groups.get(reason).letters.push(letter);
  }
  return [...groups.values()].sort((one, other) => other.letters.length - one.letters.length);
}

export function Letters({ name, may }) {
  const path = `/v1/queues/${segment(name)}/dead-letters`;
  const letters = useResource(`${path}?max=${MOST}`, { interval: 5000 });
  return html`<${State} of=${letters}>
    ${(all) => {
      if (all.length === 0) return html`<p class="fine">No dead letters.</p>`;
      return html`${all.length === MOST && html`<p class="quiet">The oldest ${format.count(MOST)}; the rest follows when these are gone.</p>`}
      ${grouped(all).map((group) => html`<${Group} key=${group.reason} group=${group} path=${path} may=${may(`queue:${name}:admin`)} done=${letters.again} />`)}`;
    }}
  <//>`;
}

function Group({ group, path, may, done }) {
  const [shown, show] = useState(20);
  const ids = group.letters.map((letter) => letter.id);
  const died = group.letters.map((letter) => letter.died_at).sort();
  const act = (verb, chosen) => async () => {
    await post(`${path}/${verb}`, { ids: chosen });
    await done();
  };
  const number = format.plural(ids.length, "message");
  return html`<article class="problem ticket">
    <p><strong>${group.reason || "no reason"}</strong> <${Badge} kind="warn">${format.count(ids.length)}<//></p>
    <p class="quiet">first <${Time} at=${died[0]} />, last <${Time} at=${died.at(-1)} /></p>
    ${may &&
    html`<div class="buttons">
      ${ids.length > 10 &&
      html`<${Ask} label="Redrive 10 first…" title="Redrive 10 of them" text="The oldest 10 go back into their queue with new attempts. See whether they come back before you redrive the rest." button="Redrive 10 messages" act=${act("redrive", ids.slice(0, 10))} />`}
      <${Ask} label="Redrive…" kind="primary" title=${`Redrive ${number}`} text=${`${number} go back into their queue, with new attempts: ${group.reason}`} button=${`Redrive ${number}`} act=${act("redrive", ids)} />
      <${Ask} label="Delete…" kind="danger" title=${`Delete ${number}`} text=${`${number} are deleted. It cannot be undone: ${group.reason}`} typed="delete" button=${`Delete ${number}`} act=${act("drop", ids)} />
    </div>`}
    <details>
      <summary>${number}</summary>
      ${group.letters.slice(0, shown).map((letter) => html`<${Letter} key=${letter.id} letter=${letter} path=${path} may=${may} done=${done} />`)}
      ${shown < ids.length && html`<button onClick=${() => show(shown + 100)}>Show more of ${format.count(ids.length)}</button>`}
    </details>
  </article>`;
}

function Letter({ letter, path, may, done }) {
  const act = (verb) => async () => {
    await post(`${path}/${verb}`, { ids: [letter.id] });
    await done();
  };
  return html`<details>
    <summary><code>${letter.id}</code> · ${letter.reason} · <${Time} at=${letter.died_at} /></summary>
    <${Facts}
      of=${[
        ["enqueued", html`<${Time} at=${letter.enqueued_at} />`],
        ["died", html`<${Time} at=${letter.died_at} />`],
        ["attempts", format.count(letter.attempts)],
        ["key", letter.key ?? format.unknown],
        ["trace", letter.trace_id ?? format.unknown],
      ]}
    />
    <${Headers} of=${letter.headers} />
    <${Payload} of=${letter} />
    ${letter.records.length > 0 &&
    html`<h3>Attempts</h3>
      <ol>
        ${letter.records.map(
          (attempt) => html`<li>
            <${Time} at=${attempt.ended_at} />, ${format.duration(attempt.took_ms / 1000)}, ${attempt.consumer}: ${attempt.error}
            ${attempt.answer && html`<pre tabindex="0">${attempt.answer}</pre>`}
          </li>`,
        )}
      </ol>`}
    ${may &&
    html`<div class="buttons">
      <${Ask} label="Redrive…" title="Redrive this message" text="It goes back into its queue, with new attempts." button="Redrive 1 message" act=${act("redrive")} />
      <${Ask} label="Delete…" kind="danger" title="Delete this message" text="It cannot be undone." typed="delete" button="Delete 1 message" act=${act("drop")} />
    </div>`}
  </details>`;
}
