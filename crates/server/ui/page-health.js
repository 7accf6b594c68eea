// The process: its roles, backends and databases, and its own checks.
import { html, useState } from "./html.js";
import { post, useResource } from "./api.js";
import { Badge, Facts, Refused, State, Table } from "./parts.js";

const Ready = ({ is }) => html`<${Badge} kind=${is ? "good" : "bad"}>${is ? "ready" : "not ready"}<//>`;

export function Health({ isAdmin }) {
  const health = useResource("/v1/health");
  return html`<${State} of=${health}>
      ${(body) => html`<${Facts}
          of=${[
            ["version", body.version],
            ["phase", body.phase],
            ["process", html`<${Ready} is=${body.ready} />`],
          ]}
        />
        <h2>Roles</h2>
        <${Table}
          caption="Roles"
          rows=${body.roles}
          keyOf=${(role) => role.role}
          empty="No role runs."
          columns=${[
            { title: "Role", of: (role) => role.role },
            { title: "State", of: (role) => html`<${Ready} is=${role.ready} />` },
            { title: "Problem", of: (role) => [role.problem, ...role.warnings].filter(Boolean).join("; ") },
            { title: "Queues", isMinor: true, of: (role) => role.queues.join(", ") },
          ]}
        />
        <h2>Backends and databases</h2>
        ${body.backends.map(
          (backend) => html`<section>
            <h3>${backend.backend} <${Ready} is=${backend.ready} /></h3>
            <p class="quiet">${backend.url}</p>
            ${[backend.problem, backend.rejects_writes, ...backend.warnings].filter(Boolean).map((text) => html`<p class="problem">${text}</p>`)}
            <${Facts} of=${Object.entries(backend.facts)} />
          </section>`,
        )}
        <${Table}
          caption="Databases"
          rows=${body.databases}
          keyOf=${(database) => database.database}
          empty="No role needs a database."
          columns=${[
            { title: "Database", of: (database) => database.database },
            { title: "State", of: (database) => html`<${Ready} is=${database.ready} />` },
            { title: "Problem", of: (database) => database.problem ?? "" },
          ]}
        />`}
    <//>
    ${isAdmin && html`<${Doctor} />`}`;
}

function Doctor() {
  const [report, show] = useState(null);
  const [problem, refuse] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const run = async () => {
    setBusy(true);
    refuse(null);
    try {
      show((await post("/v1/doctor")).body);
    } catch (error) {
      refuse(error);
    }
    setBusy(false);
  };
  return html`<h2>Checks of the process itself</h2>
    <div class="buttons"><button disabled=${isBusy} onClick=${run}>Run doctor</button></div>
    <${Refused} problem=${problem} />
    ${report &&
    html`<p class="quiet">Process ${report.pid}, data in ${report.data}</p>
      <${Table}
        caption="Checks"
        rows=${report.checks}
        keyOf=${(check) => `${check.check} ${check.detail}`}
        empty="No check."
        columns=${[
          { title: "Check", of: (check) => check.check },
          { title: "Found", of: (check) => html`<${Badge} kind=${check.found === "ok" ? "good" : "warn"}>${check.found}<//>` },
          { title: "Detail", of: (check) => check.detail },
        ]}
      />`}`;
}
