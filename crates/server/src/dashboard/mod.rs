//! The dashboard: static files that use `/v1` and nothing else.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::http::error::Problem;

mod files;

use files::FILES;

/// Nothing but files of this listener, and no script that a text could smuggle in.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// A file as it is sent.
struct Asset {
    kind: &'static str,
    tag: String,
    plain: Bytes,
    compressed: Bytes,
}

static ASSETS: LazyLock<BTreeMap<&str, Asset>> = LazyLock::new(|| {
    let assets = FILES.iter().map(|(name, text)| (*name, asset(name, text)));
    assets.collect()
});

fn asset(name: &str, text: &'static str) -> Asset {
    let kind = match name.rsplit_once('.') {
        Some((_, "js")) => "text/javascript; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "svg")) => "image/svg+xml",
        Some((_, "html")) => "text/html; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail.
    let compressed = encoder.write_all(text.as_bytes());
    let compressed = compressed.and_then(|()| encoder.finish());
    Asset {
        kind,
        tag: format!("\"{:08x}\"", crc32c::crc32c(text.as_bytes())),
        plain: Bytes::from_static(text.as_bytes()),
        compressed: compressed.unwrap_or_default().into(),
    }
}

/// The routes of its files.
pub(crate) fn router() -> Router {
    Router::new().route("/ui/{file}", get(file))
}

/// The page at `/`, for a browser.
pub(crate) fn page(headers: &HeaderMap) -> Response {
    serve("index.html", headers)
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match name == "index.html" {
        true => missing(),
        false => serve(&name, &headers),
    }
}

fn missing() -> Response {
    let reason = "the dashboard has no file of this name";
    Problem::new(StatusCode::NOT_FOUND, reason).into_response()
}

fn serve(name: &str, request: &HeaderMap) -> Response {
    let Some(asset) = ASSETS.get(name) else {
        return missing();
    };
    let has = |header: HeaderName, text: &str| {
        let values = request.get_all(header).into_iter();
        let mut values = values.filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|one| one.trim().starts_with(text)))
    };
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, text: &'static str| {
        headers.insert(name, HeaderValue::from_static(text));
    };
    set(header::CONTENT_TYPE, asset.kind);
    set(header::CACHE_CONTROL, "no-cache");
    set(header::VARY, "Accept-Encoding, Accept");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    );
    set(
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    );
    set(HeaderName::from_static("x-robots-tag"), "noindex");
    if let Ok(tag) = HeaderValue::from_str(&asset.tag) {
        headers.insert(header::ETAG, tag);
    }
    if has(header::IF_NONE_MATCH, &asset.tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let body = match has(header::ACCEPT_ENCODING, "gzip") && !asset.compressed.is_empty() {
        true => {
            let gzip = HeaderValue::from_static("gzip");
            headers.insert(header::CONTENT_ENCODING, gzip);
            asset.compressed.clone()
        }
        false => asset.plain.clone(),
    };
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ui");
        let found = std::fs::read_dir(folder).unwrap();
        let found: BTreeSet<String> = found
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        let served: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(served, found);
    }

    #[test]
    fn files_are_small() {
        let bytes = |name: &str| ASSETS[name].compressed.len();
        let all: usize = ASSETS.keys().map(|name| bytes(name)).sum();
        assert!(all <= 120 << 10, "{all} bytes");
        assert!(bytes("index.html") <= 4 << 10);
    }

    #[test]
    fn scripts_make_no_markup_of_texts() {
        let own = FILES.iter();
        let own = own.filter(|(name, _)| !name.starts_with("vendor-") && !name.ends_with(".svg"));
        for (name, text) in own {
            for refused in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=",
                "onclick=\"",
                "javascript:",
                "http://",
            ] {
                assert!(!text.contains(refused), "{name}: {refused}");
            }
        }
    }
}
