//! The explorer page: files that are compiled in and served as they are. No template, no state, nothing from elsewhere.
//!
//! What the page asks of the server, all of it public contract (it has no door of its own):
//!
//! ```text
//! GET  /v1/index, /v1/examples, /v1/datasets          once, for the state, the responses to pick from, names and colours
//! POST /v1/attributions                               {prompt, completion | example, k, method, tokens, verbatim, receipt}
//! GET  /v1/datasets/{id}, /v1/receipts/{id}, /v1/keys  where links lead
//! ```
//!
//! A field that an answer lacks leaves its part of the page out. A 401 makes the page ask for an API key, which it keeps for
//! this tab alone. Here never lives markup made of data: the script writes texts as text nodes only, so that a record with a
//! tag in it is shown and never run, and the policy header forbids everything that is not one of these files.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest as _, Sha256};

/// Nothing but our own files and our own API; nobody may frame the page, no form leaves it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file of the page.
struct Asset {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

/// Adds a file: where it is served, what it is, where it lies.
macro_rules! asset {
    ($path:literal, $content_type:literal, $file:literal) => {
        Asset { path: $path, content_type: $content_type, bytes: include_bytes!(concat!("../assets/", $file)) }
    };
}

const ASSETS: [Asset; 7] = [
    asset!("/", "text/html; charset=utf-8", "explorer.html"),
    asset!("/assets/explorer.css", "text/css; charset=utf-8", "explorer.css"),
    asset!("/assets/explorer.js", "text/javascript; charset=utf-8", "explorer.js"),
    asset!("/assets/kit.js", "text/javascript; charset=utf-8", "kit.js"),
    asset!("/assets/result.js", "text/javascript; charset=utf-8", "result.js"),
    asset!("/assets/places.js", "text/javascript; charset=utf-8", "places.js"),
    asset!("/assets/mark.svg", "image/svg+xml", "mark.svg"),
];

/// The page at `/` and its files under `/assets`. Merges into a router of any state.
pub fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    ASSETS.iter().fold(Router::new(), |router, asset| {
        // Once per process, not per request.
        let tag = etag(asset.bytes);
        router.route(asset.path, get(move |headers: HeaderMap| std::future::ready(answer(asset, &tag, &headers))))
    })
}

/// A strong validator: the first 128 bits of the file's SHA-256.
fn etag(bytes: &[u8]) -> HeaderValue {
    let digest = hex::encode(&Sha256::digest(bytes)[..16]);
    HeaderValue::from_str(&format!("\"{digest}\"")).expect("hexadecimal digits and quotes are a header's letters")
}

fn answer(asset: &Asset, tag: &HeaderValue, headers: &HeaderMap) -> Response {
    // `no-cache` lets a browser keep a file if it asks each time: a new binary shows at once, an old file costs no body.
    let shared: [(HeaderName, HeaderValue); 5] = [
        (ETAG, tag.clone()),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    if is_known(headers, tag) {
        return (StatusCode::NOT_MODIFIED, shared).into_response();
    }
    (shared, [(CONTENT_TYPE, HeaderValue::from_static(asset.content_type))], asset.bytes).into_response()
}

/// Whether the client's list of validators names this one; weak ones count, as RFC 9110 has it for GET.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let mut lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let tag = tag.to_str().unwrap_or_default();
    lists.any(|list| list.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get_root(if_none_match: Option<&str>) -> Response {
        let asset = &ASSETS[0];
        let mut headers = HeaderMap::new();
        if let Some(value) = if_none_match {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_str(value).unwrap());
        }
        answer(asset, &etag(asset.bytes), &headers)
    }

    #[test]
    fn a_known_file_is_not_sent_again_and_keeps_its_headers() {
        let first = get_root(None);
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".into()] {
            let again = get_root(Some(&known));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(again.headers()[CONTENT_SECURITY_POLICY], POLICY);
        }
        assert_eq!(get_root(Some("\"other\"")).status(), StatusCode::OK);
    }

    #[test]
    fn the_page_names_only_files_that_are_served() {
        let served: Vec<&str> = ASSETS.iter().map(|a| a.path).collect();
        for asset in ASSETS.iter().filter(|a| a.content_type.starts_with("text/")) {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for (at, _) in text.match_indices("/assets/") {
                let rest = &text[at..];
                let end = rest.find(['"', '\'', ')', ' ']).unwrap_or(rest.len());
                assert!(served.contains(&&rest[..end]), "{} names {}", asset.path, &rest[..end]);
            }
            // The name space of SVG is a name, not an address that is fetched.
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{} goes elsewhere", asset.path);
            assert!(!text.contains("innerHTML"), "{} writes markup made of data", asset.path);
        }
    }

    #[test]
    fn the_policy_needs_no_exception() {
        let page = std::str::from_utf8(ASSETS[0].bytes).unwrap();
        assert!(!POLICY.contains("unsafe") && !page.contains(" style=") && !page.contains("<style"));
        assert!(!page.contains("onclick=") && !page.contains("javascript:"));
    }
}
