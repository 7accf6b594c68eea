//! The keys of traces, each with OpenTelemetry's variable for it.
//!
//! Source: OpenTelemetry, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".

use std::path::PathBuf;
use std::time::Duration;

use super::Secret;
use super::key::{HOUR, Key, MINUTE, key};
use super::kind::Kind;
use super::model::Values;

/// The keys of traces.
pub(super) const KEYS: &[Key] = &[
    key(
        "traces.endpoint",
        Kind::WebUrl,
        None,
        &["OTEL_EXPORTER_OTLP_ENDPOINT"],
        "Base URL of the OTLP/HTTP collector; `/v1/traces` is appended. Unset: no traces.",
    ),
    key(
        "traces.url",
        Kind::WebUrl,
        None,
        &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
        "Full URL for traces, used unchanged; overrides `traces.endpoint`.",
    ),
    key(
        "traces.disabled",
        Kind::Choice(&["on", "off"]),
        Some("off"),
        &["OTEL_SDK_DISABLED"],
        "Disables traces. The variable is `true` or `false`.",
    ),
    key(
        "traces.exporter",
        Kind::Text,
        None,
        &["OTEL_TRACES_EXPORTER"],
        "`otlp` or `none`. `otlp` without an endpoint sends to `http://localhost:4318`. Unset: an endpoint enables traces.",
    ),
    key(
        "traces.protocol",
        Kind::Text,
        Some("http/protobuf"),
        &[
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ],
        "OTLP protocol: `http/protobuf`; `grpc` and `http/json` are not supported.",
    ),
    key(
        "traces.headers",
        Kind::SecretText,
        None,
        &[
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ],
        "Headers of each request to the collector, e.g. `api-key=x,tenant=a%20b`.",
    ),
    key(
        "traces.compression",
        Kind::Text,
        Some("none"),
        &[
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ],
        "`none` or `gzip`; with another value spans are sent uncompressed, with a warning.",
    ),
    key(
        "traces.timeout",
        Kind::Duration(1, HOUR),
        Some("10s"),
        &[
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ],
        "Timeout for one batch, retries included. The variables are in milliseconds.",
    ),
    key(
        "traces.ca",
        Kind::Path,
        None,
        &[
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
        ],
        "PEM file of certificate authorities trusted for the collector, in addition to those of the system.",
    ),
    key(
        "traces.client_certificate",
        Kind::Path,
        None,
        &[
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        ],
        "PEM file of the client certificate for the collector.",
    ),
    key(
        "traces.client_key",
        Kind::Path,
        None,
        &[
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        ],
        "PEM file of the client certificate's private key.",
    ),
    key(
        "traces.service",
        Kind::Text,
        None,
        &["OTEL_SERVICE_NAME"],
        "Service name in traces [default: `service.name` of `traces.attributes`, or `towpath`].",
    ),
    key(
        "traces.attributes",
        Kind::Text,
        None,
        &["OTEL_RESOURCE_ATTRIBUTES"],
        "Resource attributes, e.g. `deployment.environment.name=test,service.namespace=shop`.",
    ),
    key(
        "traces.sampler",
        Kind::Text,
        Some("parentbased_always_on"),
        &["OTEL_TRACES_SAMPLER"],
        "Sampler: `always_on`, `always_off`, `traceidratio`, or one of these with the prefix `parentbased_`.",
    ),
    key(
        "traces.sampler_argument",
        Kind::Text,
        None,
        &["OTEL_TRACES_SAMPLER_ARG"],
        "Fraction of traces that `traceidratio` samples, 0 to 1 [default: 1].",
    ),
    key(
        "traces.propagators",
        Kind::Text,
        Some("tracecontext,baggage"),
        &["OTEL_PROPAGATORS"],
        "Trace propagation: `tracecontext`, or `none`. Baggage is not propagated.",
    ),
    key(
        "traces.max_attributes",
        Kind::Integer(0, 4_294_967_295),
        Some("128"),
        &[
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "OTEL_ATTRIBUTE_COUNT_LIMIT",
        ],
        "Maximum attributes per span.",
    ),
    key(
        "traces.max_attribute_length",
        Kind::Integer(0, 4_294_967_295),
        None,
        &[
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        ],
        "Maximum characters per attribute. Unset: no limit.",
    ),
    key(
        "traces.batch.delay",
        Kind::Duration(0, HOUR),
        Some("5s"),
        &["OTEL_BSP_SCHEDULE_DELAY"],
        "Delay before a batch of spans is exported. The variable is in milliseconds.",
    ),
    key(
        "traces.batch.timeout",
        Kind::Duration(1, 10 * MINUTE),
        Some("30s"),
        &["OTEL_BSP_EXPORT_TIMEOUT"],
        "Maximum time for one export, regardless of `traces.timeout`. The variable is in milliseconds.",
    ),
    key(
        "traces.batch.queue",
        Kind::Integer(1, 1_000_000),
        Some("2048"),
        &["OTEL_BSP_MAX_QUEUE_SIZE"],
        "Maximum queued spans; further spans are dropped.",
    ),
    key(
        "traces.batch.size",
        Kind::Integer(1, 1_000_000),
        Some("512"),
        &["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"],
        "Maximum spans per export.",
    ),
];

/// The configuration of traces.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the key of the same name, documented in the table of keys"
)]
pub struct Traces {
    pub endpoint: Option<String>,
    pub url: Option<String>,
    pub is_disabled: bool,
    pub exporter: Option<String>,
    pub protocol: String,
    pub headers: Secret,
    pub compression: String,
    pub timeout: Duration,
    pub ca: Option<PathBuf>,
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub service: Option<String>,
    pub attributes: String,
    pub sampler: String,
    pub sampler_argument: Option<String>,
    pub propagators: String,
    pub batch_delay: Duration,
    pub batch_timeout: Duration,
    pub batch_queue: usize,
    pub batch_size: usize,
    pub max_attributes: u32,
    pub max_attribute_length: Option<usize>,
}

impl Traces {
    pub(super) fn read(values: &Values<'_>) -> Self {
        let path = |key: &str| values.optional(key).map(PathBuf::from);
        Self {
            endpoint: values.optional("traces.endpoint"),
            url: values.optional("traces.url"),
            is_disabled: values.text("traces.disabled") == "on",
            exporter: values.optional("traces.exporter"),
            protocol: values.text("traces.protocol"),
            headers: Secret::new(values.text("traces.headers")),
            compression: values.text("traces.compression"),
            timeout: values.duration("traces.timeout"),
            ca: path("traces.ca"),
            client_certificate: path("traces.client_certificate"),
            client_key: path("traces.client_key"),
            service: values.optional("traces.service"),
            attributes: values.text("traces.attributes"),
            sampler: values.text("traces.sampler"),
            sampler_argument: values.optional("traces.sampler_argument"),
            propagators: values.text("traces.propagators"),
            batch_delay: values.duration("traces.batch.delay"),
            batch_timeout: values.duration("traces.batch.timeout"),
            batch_queue: values.count("traces.batch.queue"),
            batch_size: values.count("traces.batch.size"),
            max_attributes: u32::try_from(values.number("traces.max_attributes"))
                .unwrap_or(u32::MAX),
            max_attribute_length: values
                .optional("traces.max_attribute_length")
                .and_then(|length| length.parse().ok()),
        }
    }
}
