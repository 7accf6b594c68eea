//! URLs in logs, errors and spans.

use reqwest::Url;

/// A URL as it may be shown: without user, query and fragment.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Neither fails for a URL with a host.
    url.set_username("").ok();
    url.set_password(None).ok();
    url.to_string()
}
