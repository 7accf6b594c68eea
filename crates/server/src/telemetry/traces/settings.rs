//! The configuration of traces, in the terms of the SDK.
//!
//! Source: OpenTelemetry, "Environment Variable Specification": values that are not known are named in a warning and
//! count as not set. Settings that would drop spans silently are refused.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::Sampler;
use rustls::ClientConfig;
use towpath_core::{Error, Result};
use tracing::warn;

use crate::config;
use crate::http::decoded;
use towpath::net::{trusting_also, with_identity};

/// Where `otlp` sends to without an endpoint. Source: OpenTelemetry, "OpenTelemetry Protocol Exporter".
const ENDPOINT: &str = "http://localhost:4318";

/// Default service name.
const SERVICE: &str = "towpath";

/// Settings of a process that sends traces.
pub(super) struct Settings {
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    /// Whether bodies are compressed with gzip.
    pub(super) is_compressed: bool,
    pub(super) tls: Option<ClientConfig>,
    pub(super) resource: Resource,
    pub(super) sampler: Sampler,
    pub(super) batch_delay: Duration,
    pub(super) batch_queue: usize,
    pub(super) batch_size: usize,
    pub(super) max_attributes: u32,
    pub(super) max_attribute_length: Option<usize>,
}

impl Settings {
    /// The settings, unless no traces are wanted.
    pub(super) fn of(config: &config::Traces) -> Result<Option<Self>> {
        if config.is_disabled || !is_exported(config) {
            return Ok(None);
        }
        let of_all = |endpoint: &String| format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let asked = config.exporter.as_ref().map(|_| ENDPOINT.to_owned());
        let endpoint = config.endpoint.clone().or(asked);
        let Some(url) = config.url.clone().or(endpoint.as_ref().map(of_all)) else {
            return Ok(None);
        };
        if config.protocol != "http/protobuf" {
            return Err(Error::invalid(format!(
                "traces cannot be sent by `{}` (`traces.protocol`, `OTEL_EXPORTER_OTLP_PROTOCOL`); \
                 set `http/protobuf` and the collector's HTTP port, which is mostly 4318",
                config.protocol
            )));
        }
        let compression = &config.compression;
        if !["none", "gzip"].contains(&compression.as_str()) {
            warn!(
                compression,
                "compression of traces is not supported; spans are sent without"
            );
        }
        Ok(Some(Self {
            url,
            headers: headers(config.headers.expose()),
            is_compressed: compression == "gzip",
            timeout: config.timeout.min(config.batch_timeout),
            tls: tls(config)?,
            resource: resource(config),
            sampler: sampler(&config.sampler, config.sampler_argument.as_deref()),
            batch_delay: config.batch_delay,
            batch_queue: config.batch_queue,
            batch_size: config.batch_size.min(config.batch_queue),
            max_attributes: config.max_attributes,
            max_attribute_length: config.max_attribute_length,
        }))
    }
}

/// Whether traces come in and continue in headers.
pub(super) fn propagates(config: &config::Traces) -> bool {
    let mut propagates = false;
    for name in words(&config.propagators) {
        match name {
            "tracecontext" => propagates = true,
            // A part of the default.
            "none" | "baggage" => {}
            _ => warn!(propagator = name, "trace propagator not supported"),
        }
    }
    propagates
}

/// Whether `otlp` is among the exporters, or none is set.
fn is_exported(config: &config::Traces) -> bool {
    let Some(exporters) = &config.exporter else {
        return true;
    };
    let mut is_exported = false;
    for name in words(exporters) {
        match name {
            "otlp" => is_exported = true,
            "none" => {}
            _ => warn!(exporter = name, "trace exporter not supported"),
        }
    }
    is_exported
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// `name=value,name=value`, with `%` and two digits for characters that would end a value. Empty for an invalid list.
fn pairs(list: &str) -> Option<Vec<(&str, String)>> {
    let pair = |word| {
        let (name, value) = str::split_once(word, '=')?;
        let name = name.trim_end();
        (!name.is_empty()).then_some((name, decoded(value.trim_start())?))
    };
    words(list).map(pair).collect()
}

fn headers(list: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(pairs) = pairs(list) else {
        warn!("`traces.headers` is not a list like `name=value,name=value`; none is sent");
        return headers;
    };
    for (name, value) in pairs {
        let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
        match parsed {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            _ => warn!(name, "invalid header of `traces.headers` ignored"),
        }
    }
    headers
}

fn resource(config: &config::Traces) -> Resource {
    let pairs = pairs(&config.attributes).unwrap_or_else(|| {
        let attributes = &config.attributes;
        warn!(
            attributes,
            "`traces.attributes` is not a list like `name=value,name=value`; none is sent"
        );
        Vec::new()
    });
    let attributes = pairs
        .into_iter()
        .map(|(name, value)| KeyValue::new(name.to_owned(), value));
    let own = [
        KeyValue::new("service.name", SERVICE),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("telemetry.sdk.name", "opentelemetry"),
        KeyValue::new("telemetry.sdk.language", "rust"),
    ];
    let named = config.service.clone();
    let named = named.map(|name| KeyValue::new("service.name", name));
    // Later attributes win.
    Resource::builder_empty()
        .with_attributes(own)
        .with_attributes(attributes)
        .with_attributes(named)
        .build()
}

fn sampler(name: &str, argument: Option<&str>) -> Sampler {
    let parent_based = name.strip_prefix("parentbased_");
    let root = match parent_based.unwrap_or(name) {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(share(argument)),
        _ => {
            warn!(
                sampler = name,
                "sampler of traces is not supported; using parentbased_always_on"
            );
            return Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
        }
    };
    match parent_based {
        Some(_) => Sampler::ParentBased(Box::new(root)),
        None => root,
    }
}

/// From 0 to 1; all without one.
fn share(argument: Option<&str>) -> f64 {
    let Some(text) = argument else {
        return 1.0;
    };
    let share = text.trim().parse().ok();
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .unwrap_or_else(|| {
            warn!(
                argument = text,
                "`traces.sampler_argument` is not a number from 0 to 1; using 1"
            );
            1.0
        })
}

fn tls(config: &config::Traces) -> Result<Option<ClientConfig>> {
    let ca = config.ca.as_deref();
    match (&config.client_certificate, &config.client_key) {
        (None, None) => ca.map(trusting_also).transpose(),
        (Some(certificate), Some(key)) => with_identity(ca, certificate, key).map(Some),
        (Some(_), None) => Err(one_of_two("traces.client_key")),
        (None, Some(_)) => Err(one_of_two("traces.client_certificate")),
    }
}

fn one_of_two(missing: &str) -> Error {
    Error::invalid(format!(
        "`traces.client_certificate` and `traces.client_key` go together; `{missing}` is missing"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use opentelemetry::Key;

    use super::*;
    use crate::config::{OfFolder, Sources, load};
    use crate::wiring;

    fn settings(variables: &[(&str, &str)]) -> Result<Option<Settings>> {
        Settings::of(&traces(variables))
    }

    fn traces(variables: &[(&str, &str)]) -> config::Traces {
        let env: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let sources = Sources {
            file: None,
            env,
            unreadable: BTreeSet::new(),
            folder: OfFolder::default(),
            warnings: Vec::new(),
            apps: None,
            flags: Vec::new(),
            stores: wiring::STORES,
        };
        load(&sources).unwrap().config.traces
    }

    fn url(variables: &[(&str, &str)]) -> Option<String> {
        settings(variables).unwrap().map(|settings| settings.url)
    }

    const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");
    const OF_TRACES: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/x");

    #[test]
    fn the_endpoint_of_traces_is_used_as_it_is_and_wins() {
        assert_eq!(url(&[]), None);
        assert_eq!(url(&[ALL]).as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(url(&[OF_TRACES]).as_deref(), Some("http://t:1/x"));
        assert_eq!(url(&[ALL, OF_TRACES]).as_deref(), Some("http://t:1/x"));
        let asked = ("OTEL_TRACES_EXPORTER", "otlp");
        assert_eq!(
            url(&[asked]).as_deref(),
            Some("http://localhost:4318/v1/traces")
        );
    }

    #[test]
    fn nothing_is_sent_with_the_exporter_none() {
        for off in [
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_TRACES_EXPORTER", "console"),
        ] {
            assert_eq!(url(&[ALL, off]), None, "{off:?}");
        }
        for on in [
            ("OTEL_SDK_DISABLED", "false"),
            ("OTEL_SDK_DISABLED", ""),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "console,otlp"),
        ] {
            assert!(url(&[ALL, on]).is_some(), "{on:?}");
        }
    }

    #[test]
    fn another_protocol_is_refused_by_name_when_traces_are_sent() {
        let all = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let refused = settings(&[ALL, all]).err().unwrap().to_string();
        assert!(
            refused.contains("`grpc`") && refused.contains("4318"),
            "{refused}"
        );
        assert_eq!(url(&[all]), None, "nothing is sent");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert!(url(&[ALL, all, of_traces]).is_some());
    }

    #[test]
    fn the_last_name_of_the_service_wins() {
        let name = |variables: &[(&str, &str)]| {
            let all = [&[ALL], variables].concat();
            let resource = settings(&all).unwrap().unwrap().resource;
            let name = resource.get(&Key::new("service.name")).unwrap();
            name.as_str().into_owned()
        };
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop, a=b%2Cc");
        assert_eq!(name(&[]), "towpath");
        assert_eq!(name(&[("OTEL_SERVICE_NAME", "")]), "towpath");
        assert_eq!(name(&[attributes]), "shop");
        assert_eq!(name(&[attributes, ("OTEL_SERVICE_NAME", "cart")]), "cart");
        let resource = settings(&[ALL, attributes]).unwrap().unwrap().resource;
        let other = resource.get(&Key::new("a")).unwrap();
        assert_eq!(other.as_str(), "b,c");
    }

    #[test]
    fn headers_and_deadlines_of_traces_win_over_those_of_all_signals() {
        let found = settings(&[
            ALL,
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=all"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "api-key=traces,tenant=a%20b",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
            ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5"),
            ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "7"),
        ]);
        let found = found.unwrap().unwrap();
        assert_eq!(found.headers["api-key"], "traces");
        assert_eq!(found.headers["tenant"], "a b");
        assert_eq!(found.timeout, Duration::from_secs(2));
        assert_eq!(found.batch_delay, Duration::from_millis(50));
        assert_eq!((found.batch_queue, found.batch_size), (10, 10));
        assert_eq!(found.max_attributes, 5);
        assert_eq!(found.max_attribute_length, Some(7));
        let wrong = settings(&[ALL, ("OTEL_EXPORTER_OTLP_HEADERS", "no list")]);
        assert!(wrong.unwrap().unwrap().headers.is_empty());
    }

    #[test]
    fn samplers_and_propagators_are_those_of_the_standard() {
        let of = |name: &str, argument: Option<&str>| format!("{:?}", sampler(name, argument));
        assert_eq!(of("always_off", None), "AlwaysOff");
        assert_eq!(of("traceidratio", Some("0.25")), "TraceIdRatioBased(0.25)");
        assert_eq!(of("traceidratio", Some("x")), "TraceIdRatioBased(1.0)");
        assert_eq!(of("parentbased_always_off", None), "ParentBased(AlwaysOff)");
        assert_eq!(of("jaeger_remote", None), "ParentBased(AlwaysOn)");
        for (list, expected) in [
            ("tracecontext,baggage", true),
            ("b3, tracecontext", true),
            ("none", false),
            ("b3", false),
        ] {
            let config = traces(&[("OTEL_PROPAGATORS", list)]);
            assert_eq!(propagates(&config), expected, "{list}");
        }
        assert!(propagates(&traces(&[])));
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let alone = ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/tmp/x.pem");
        let refused = settings(&[ALL, alone]).err().unwrap().to_string();
        assert!(refused.contains("traces.client_key"), "{refused}");
        assert!(tls(&traces(&[ALL])).unwrap().is_none());
    }
}
