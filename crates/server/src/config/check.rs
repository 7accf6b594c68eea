//! Values that are valid alone and conflict with each other.

use std::time::Duration;

use super::strength;
use super::suggest::did_you_mean;
use super::{ChannelKind, Config, Secret, SinkKind};
use crate::apps::{PUBLIC_ROUTES, accounts, fleet};
use crate::auth::Table;
use crate::documents::Part;
use towpath::net::cidr;
use towpath::net::egress::EgressPolicy;

/// The keys of a rule, and the problem when they conflict.
pub(super) type Rule = (&'static [&'static str], fn(&Config) -> Option<&'static str>);

/// A limit of a route that no listener has would limit nothing.
pub(super) fn unknown_route(config: &Config) -> Option<String> {
    let routes = config.route_limits.iter();
    let mut routes = routes.filter_map(|text| accounts::limited_route(text));
    let others = Table::of(&[Part::Dashboard, Part::Controller, Part::Worker]);
    let unknown = routes.find(|route| !PUBLIC_ROUTES.contains(route) && !others.has(route))?;
    let hint = did_you_mean(unknown, PUBLIC_ROUTES);
    Some(format!(
        "`server.limits` names `{unknown}`, which is not a route of a role{hint}"
    ))
}

/// Every rule. The problem is shown at the key that was said last.
pub(super) const RULES: &[Rule] = &[
    (&["data.dir"], |config| {
        let marked = config.data_dir.to_string_lossy().contains('?');
        marked.then_some("`data.dir` cannot contain `?`, which begins the parameters of a URL")
    }),
    (
        &[
            "server.jwt.jwks",
            "server.jwt.issuer",
            "server.jwt.audience",
        ],
        |config| {
            let set = [
                config.jwks.is_some(),
                config.jwt_issuer.is_some(),
                config.jwt_audience.is_some(),
            ];
            (set.contains(&true) && set.contains(&false)).then_some(
                "JWTs need all of `server.jwt.jwks`, `server.jwt.issuer` and `server.jwt.audience`",
            )
        },
    ),
    (&["server.jwt.jwks"], |config| {
        let url = reqwest::Url::parse(config.jwks.as_ref()?.expose()).ok()?;
        let is_here = match url.host_str()?.trim_matches(['[', ']']).parse() {
            Ok(address) => std::net::IpAddr::is_loopback(&address),
            Err(_) => url.host_str() == Some("localhost"),
        };
        (url.scheme() == "http" && !is_here).then_some(
            "keys that arrive by plain HTTP can be replaced on their way; use `https://`",
        )
    }),
    (
        &["ingest.worker.sink", "ingest.worker.webhook.url"],
        |config| {
            (config.sink == SinkKind::Webhook && config.webhook_url.is_none())
                .then_some("the webhook sink needs `ingest.worker.webhook.url`")
        },
    ),
    (
        &["ingest.worker.sink", "ingest.worker.command.program"],
        |config| {
            (config.sink == SinkKind::Command && config.command.is_empty())
                .then_some("the command sink needs `ingest.worker.command.program`")
        },
    ),
    (
        &["ingest.worker.sink", "ingest.worker.concurrency"],
        |config| {
            let single = matches!(config.sink, SinkKind::File | SinkKind::Stdout);
            (config.concurrency > 1 && single).then_some(
                "the file and stdout sinks take one consumer; set `ingest.worker.concurrency` to 1",
            )
        },
    ),
    (
        &["orders.notify.channel", "orders.notify.smtp.url"],
        |config| {
            let orders = &config.orders;
            (orders.channel == ChannelKind::Smtp && orders.smtp_url.is_none())
                .then_some("the smtp channel needs `orders.notify.smtp.url`")
        },
    ),
    (
        &["orders.notify.channel", "orders.notify.webhook.url"],
        |config| {
            let orders = &config.orders;
            (orders.channel == ChannelKind::Webhook && orders.webhook_url.is_none())
                .then_some("the webhook channel needs `orders.notify.webhook.url`")
        },
    ),
    (&["orders.retry.first", "orders.retry.max"], |config| {
        (config.orders.retry.first > config.orders.retry.max)
            .then_some("`retry.first` is longer than `retry.max`")
    }),
    (
        &["orders.dashboard.listen", "server.listen", "server.admin"],
        |config| {
            let dashboard = config.orders.dashboard_listen.as_deref()?;
            let taken = clash(&config.listen, dashboard) || clash(&config.admin, dashboard);
            taken.then_some(
                "`orders.dashboard.listen` is the address of `server.listen` or `server.admin`",
            )
        },
    ),
    (&["fleet.api_keys", "fleet.development"], |config| {
        let mut keys = config.fleet.api_keys.iter();
        let is_known = keys.any(|key| key.expose().eq_ignore_ascii_case(fleet::DEFAULT_KEY));
        (is_known && !config.fleet.development).then_some(
            "the key `default-api-key` is publicly known; set another key, remove the setting to generate one, or set `fleet.development = \"on\"` on an isolated machine",
        )
    }),
    (
        &[
            "fleet.api_keys",
            "fleet.agent.key",
            "fleet.agent.worker_key",
        ],
        |config| {
            let fleet = &config.fleet;
            let agent = fleet.agent_key.iter().chain(&fleet.agent_worker_key);
            let mut keys = fleet.api_keys.iter().chain(agent);
            let is_weak = keys.any(|key| strength::bits(key.expose()) < strength::LEAST_BITS);
            (is_weak && !fleet.development).then_some(
                "the key has an estimated strength under 80 bits; use a key of `towpath key new`, remove `fleet.api_keys` to generate one, or set `fleet.development = \"on\"` on an isolated machine",
            )
        },
    ),
    (&["fleet.public_key"], |config| {
        let key = config.fleet.public_key.as_deref()?;
        fleet::PublicKey::parse(key).is_none().then_some(
            "`fleet.public_key` takes `proof.public_key` of a configuration, 43 characters of base64url",
        )
    }),
    (&["server.tls.certificate", "server.tls.key"], |config| {
        (config.tls_certificate.is_some() != config.tls_key.is_some())
            .then_some("`server.tls.certificate` and `server.tls.key` go together; one is missing")
    }),
    (&["server.tls.client_ca"], |config| {
        (config.tls_client_ca.is_some() && config.tls_certificate.is_none())
            .then_some("`server.tls.client_ca` needs `server.tls.certificate` and `server.tls.key`")
    }),
    (&["server.tls.admin"], |config| {
        (config.tls_admin && config.tls_certificate.is_none())
            .then_some("`server.tls.admin` needs `server.tls.certificate` and `server.tls.key`")
    }),
    (&["server.limits"], |config| {
        let is_wrong = |text: &String| !accounts::is_route_limit(text);
        config.route_limits.iter().any(is_wrong).then_some(
            "`server.limits` takes limits of routes like `*=token_bucket:10:0.1/1s` or `/enqueue=sliding_window:1000/1m:fail_open`",
        )
    }),
    (&["server.trusted_proxies"], |config| {
        let is_wrong = |text: &String| cidr::parse(text).is_none();
        config.trusted_proxies.iter().any(is_wrong).then_some(
            "`server.trusted_proxies` takes addresses and nets like `10.0.0.1` or `10.0.0.0/8`",
        )
    }),
    (&["fleet.worker.allow"], |config| {
        let is_wrong = |place: &String| !EgressPolicy::is_exception(place);
        config.fleet.allow.iter().any(is_wrong).then_some(
            "`fleet.worker.allow` takes places like `localhost`, `127.0.0.1:8080`, `10.1.2.0/24` or `[::1]:80`",
        )
    }),
    (
        &["ingest.worker.webhook.allow", "ingest.worker.webhook.url"],
        |config| misled(config.webhook_url.as_ref(), config.webhook_allow.as_deref()),
    ),
    (
        &["orders.notify.webhook.allow", "orders.notify.webhook.url"],
        |config| {
            let orders = &config.orders;
            misled(orders.webhook_url.as_ref(), orders.webhook_allow.as_deref())
        },
    ),
    (&["fleet.agent.workers"], |config| {
        let is_url = |url: &String| {
            reqwest::Url::parse(url)
                .is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
        };
        (!config.fleet.workers.iter().all(is_url))
            .then_some("`fleet.agent.workers` takes URLs like `http://localhost:6002`")
    }),
    (&["server.cors.origins"], |config| {
        let is_origin = |text: &String| {
            text == "*"
                || reqwest::Url::parse(text)
                    .is_ok_and(|url| url.has_host() && url.origin().ascii_serialization() == *text)
        };
        (!config.cors_origins.iter().all(is_origin)).then_some(
            "`server.cors.origins` takes origins as browsers send them, like `https://shop.example` or `http://localhost:3000` without a slash at the end, or `*`",
        )
    }),
    (&["server.listen", "server.admin"], |config| {
        clash(&config.listen, &config.admin)
            .then_some("`server.admin` and `server.listen` are the same address")
    }),
    (
        &[
            "server.max_body_memory",
            "ingest.max_body",
            "ingest.max_batch_body",
        ],
        |config| {
            let largest = config.max_body.max(config.max_batch_body);
            config.max_body_memory.filter(|memory| *memory < largest).map(|_| {
                "`server.max_body_memory` is less than one body of `ingest.max_body` or `ingest.max_batch_body`"
            })
        },
    ),
    (
        &["ingest.worker.retry.first", "ingest.worker.retry.max"],
        |config| {
            (config.retry.first > config.retry.max)
                .then_some("`retry.first` is longer than `retry.max`")
        },
    ),
];

/// The problem of the allowed targets of a webhook.
fn misled(url: Option<&Secret>, allow: Option<&[String]>) -> Option<&'static str> {
    let Ok(egress) = EgressPolicy::new(allow?, Duration::ZERO) else {
        return Some(
            "`webhook.allow` takes places like `localhost`, `127.0.0.1:8080`, `10.1.2.0/24` or `[::1]:80`, or `public` for no further place",
        );
    };
    let url = reqwest::Url::parse(url?.expose()).ok()?;
    egress.check_place(&url).is_err().then_some(
        "`webhook.url` leads to a place that `webhook.allow` does not allow; name its host there, or leave `webhook.allow` out",
    )
}

/// Whether two addresses cannot both be listened on; port 0 is any free one.
fn clash(one: &str, other: &str) -> bool {
    let (Some((host, port)), Some((other_host, other_port))) =
        (one.rsplit_once(':'), other.rsplit_once(':'))
    else {
        return false;
    };
    let everywhere = |host: &str| ["", "0.0.0.0", "[::]"].contains(&host);
    port == other_port
        && port != "0"
        && (host == other_host || everywhere(host) || everywhere(other_host))
}
