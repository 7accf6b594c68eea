// The fleet and its tasks.
import { html, useState } from "./html.js";
import { call, post, segment, useResource } from "./api.js";
import * as format from "./format.js";
import { Ask, Badge, Facts, State, Table, Time } from "./parts.js";

export function Fleet({ may }) {
  const agents = useResource("/v1/fleet/agents?limit=200");
  const history = useResource("/v1/fleet/config/history?limit=20", { interval: 5000 });
  const [hasRollout, showRollout] = useState(false);
  const rollout = useResource(hasRollout ? "/v1/fleet/rollout" : null);
  const isOperator = may("fleet:publish");
  const newest = history.body?.[0]?.version;
  const has = (field) => agents.body?.filter((agent) => agent[field] === newest).length;
  return html`${newest !== undefined &&
    agents.body &&
    html`<${Facts}
      of=${[
        ["newest version", newest],
        ["agents with it", `${format.count(has("applied_version"))} of ${format.count(agents.body.length)}`],
        ["agents that refused it", format.count(has("failed_version"))],
        ["active", format.count(agents.body.filter((agent) => agent.status === "active").length)],
      ]}
    />`}
    <details onToggle=${(event) => showRollout(event.target.open)}>
      <summary>Last rollout</summary>
      ${hasRollout &&
      html`<${State} of=${rollout}>
        ${(body) => html`<p>Version ${body.version} <${Badge} kind=${body.status === "stopped" ? "bad" : "plain"}>${body.status}<//> ${body.reason ?? ""}</p>
          <p>Step ${body.step + 1} of ${JSON.stringify(body.steps)}; version ${body.stable} before it.</p>
          ${isOperator &&
          body.status === "running" &&
          html`<${Ask} label="Stop…" kind="danger" title="Stop the rollout" text="The version before is restored on every agent." button="Stop the rollout" act=${async () => (await post("/v1/fleet/rollout/stop", { reason: "stopped in the dashboard" }), rollout.again())} />`}`}
      <//>`}
    </details>
    <h2>Agents</h2>
    <${State} of=${agents}>
      ${(all) => html`<${Table}
        caption="Agents"
        rows=${all}
        keyOf=${(agent) => agent.agent_id}
        empty="No agent has registered: towpath run agent"
        columns=${[
          { title: "Host", of: (agent) => agent.hostname },
          {
            title: "Status",
            of: (agent) => html`<${Badge} kind=${agent.status === "active" ? "good" : "bad"}>${agent.status}<//>${agent.shared_by.length > 1 && html`<${Badge} kind="bad">shared identity<//>`}`,
          },
          { title: "Applied", isNumber: true, of: (agent) => agent.applied_version ?? format.unknown },
          { title: "Refused", isNumber: true, of: (agent) => agent.failed_version ?? format.unknown },
          { title: "Last error", isMinor: true, of: (agent) => agent.last_error ?? "" },
          { title: "Labels", isMinor: true, of: (agent) => Object.entries(agent.labels).map(([name, value]) => `${name}=${value}`).join(" ") },
          { title: "Last seen", of: (agent) => html`<${Time} at=${agent.last_seen} />` },
        ]}
      />`}
    <//>
    <h2>Versions</h2>
    <${State} of=${history}>
      ${(all) => html`<${Table}
        caption="Versions"
        rows=${all}
        keyOf=${(config) => config.version}
        empty="No configuration was published: towpath fleet config publish url=https://example.com/"
        columns=${[
          { title: "Version", isNumber: true, of: (config) => config.version },
          { title: "Published", of: (config) => html`<${Time} at=${config.created_at} />` },
          { title: "By", isMinor: true, of: (config) => config.author },
          { title: "Data", of: (config) => html`<details><summary>show</summary><pre tabindex="0">${JSON.stringify(config.data, null, 2)}</pre></details>` },
          {
            title: "Action",
            of: (config) =>
              isOperator &&
              config.version !== newest &&
              html`<${Ask}
                label="Roll back…"
                title=${`Roll back to version ${config.version}`}
                text=${`Publishes the data of version ${config.version} as a new version, for every agent: ${JSON.stringify(config.data)}`}
                button=${`Publish the data of version ${config.version}`}
                act=${async () => (await post("/v1/fleet/config/rollback", { version: config.version }), history.again())}
              />`,
          },
        ]}
      />`}
    <//>`;
}

export function Tasks({ may }) {
  const tasks = useResource("/v1/tasks?limit=100");
  return html`${may("tasks:write") &&
    html`<${Ask} label="Start a task…" title="Start a task" text="The worker calls the URL of its configuration." button="Start" act=${async () => (await post("/v1/tasks"), tasks.again())} />`}
    <${State} of=${tasks}>
      ${(all) => html`<${Table}
        caption="Tasks"
        rows=${all}
        keyOf=${(task) => task.task_id}
        empty="No task yet."
        columns=${[
          { title: "Id", of: (task) => html`<code>${task.task_id}</code>` },
          { title: "Status", of: (task) => html`<${Badge} kind=${task.status === "failed" ? "bad" : "plain"}>${task.status}<//>` },
          { title: "Answer", isNumber: true, of: (task) => task.status_code ?? format.unknown },
          { title: "Attempts", isNumber: true, isMinor: true, of: (task) => format.count(task.attempts) },
          { title: "Created", isMinor: true, of: (task) => html`<${Time} at=${task.created_at} />` },
          { title: "Error", isMinor: true, of: (task) => task.error ?? "" },
          {
            title: "Action",
            of: (task) =>
              may("tasks:write") &&
              ["pending", "running", "queued"].includes(task.status) &&
              html`<${Ask} label="Cancel…" title="Cancel the task" text="It calls the URL no more." button="Cancel the task" act=${async () => (await call("DELETE", `/v1/tasks/${segment(task.task_id)}`), tasks.again())} />`,
          },
        ]}
      />`}
    <//>`;
}
