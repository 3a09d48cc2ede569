//! Signatures: what proves that a request is ours, without sending the secret. AWS Signature Version 4 for S3, the same under
//! other names for Google ("V4 signing process", Cloud Storage documentation), and what these and Azure's share.
//!
//! Source: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", Amazon S3 API reference; its two
//! worked examples are the tests below.

use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};

/// Who asks.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub key_id: String,
    pub secret: String,
    /// Of a temporary key.
    pub token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// Whose names a signature of version 4 goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `AWS4-HMAC-SHA256`.
    Amazon,
    /// `GOOG4-HMAC-SHA256`.
    Google,
}

impl Dialect {
    /// What stands before the secret, the service, and the end of the scope.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::Amazon => ["AWS4", "s3", "aws4_request"],
            Self::Google => ["GOOG4", "storage", "goog4_request"],
        }
    }
}

/// A request as it is signed. Headers are in lower case, sorted by name; no query.
pub(crate) struct ToSign<'a> {
    pub method: &'a str,
    /// Percent-encoded.
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// SHA-256 of the body, hex.
    pub body_sha256: &'a str,
    /// `20130524T000000Z`.
    pub time: &'a str,
    pub region: &'a str,
    pub dialect: Dialect,
}

/// SHA-256, hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The value of the `Authorization` header.
pub(crate) fn authorization(request: &ToSign<'_>, who: &Credentials) -> String {
    let lines: String = request.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let canonical = format!("{}\n{}\n\n{lines}\n{names}\n{}", request.method, request.path, request.body_sha256);
    let day = request.time.get(..8).unwrap_or(request.time);
    let [start, service, end] = request.dialect.names();
    let scope = format!("{day}/{}/{service}/{end}", request.region);
    let text = format!("{start}-HMAC-SHA256\n{}\n{scope}\n{}", request.time, sha256_hex(canonical.as_bytes()));
    let day_key = mac(format!("{start}{}", who.secret).as_bytes(), day);
    let key = mac(&mac(&mac(&day_key, request.region), service), end);
    let signature = hex::encode(mac(&key, &text));
    format!("{start}-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", who.key_id)
}

/// HMAC-SHA256.
pub(crate) fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Percent-encodes what is not unreserved (RFC 3986, §2.3); slashes stay.
pub(crate) fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Seconds since 1970 as `20130524T000000Z`. Days to dates after Hinnant, "chrono-compatible low-level date algorithms".
pub(crate) fn time_of(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Seconds since 1970 as `Fri, 24 May 2013 00:00:00 GMT` (RFC 9110, §5.6.7).
pub(crate) fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let time = time_of(seconds);
    let month = time[4..6].parse::<usize>().map_or("", |month| MONTHS[month - 1]);
    let day = DAYS[(seconds / 86_400 % 7) as usize];
    format!("{day}, {} {month} {} {}:{}:{} GMT", &time[6..8], &time[..4], &time[9..11], &time[11..13], &time[13..15])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8], signature: &str) {
        let who = Credentials {
            key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
        };
        let body_sha256 = sha256_hex(body);
        let (time, region) = ("20130524T000000Z", "us-east-1");
        let mut headers: Vec<(&str, &str)> = headers.to_vec();
        headers.extend([
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-content-sha256", body_sha256.as_str()),
            ("x-amz-date", time),
        ]);
        headers.sort_unstable();
        let dialect = Dialect::Amazon;
        let request = ToSign { method, path, headers: &headers, body_sha256: &body_sha256, time, region, dialect };
        let found = authorization(&request, &who);
        assert!(found.ends_with(&format!("Signature={signature}")), "{found}");
    }

    #[test]
    fn the_examples_of_the_reference() {
        check(
            "GET",
            "/test.txt",
            &[("range", "bytes=0-9")],
            b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        );
        check(
            "PUT",
            &encode_path("/test$file.text"),
            &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        );
    }

    /// By Google's names; the signature is from Python's `hmac` over the same text.
    #[test]
    fn by_other_names() {
        let who = Credentials {
            key_id: "GOOG1EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
        };
        let (body_sha256, time) = (sha256_hex(b"hello"), "20130524T000000Z");
        let headers = [
            ("host", "storage.googleapis.com"),
            ("x-goog-content-sha256", body_sha256.as_str()),
            ("x-goog-date", time),
            ("x-goog-if-generation-match", "0"),
        ];
        let (method, path, region, dialect) = ("PUT", "/rows/a%20b", "auto", Dialect::Google);
        let request = ToSign { method, path, headers: &headers, body_sha256: &body_sha256, time, region, dialect };
        let wanted = "GOOG4-HMAC-SHA256 Credential=GOOG1EXAMPLE/20130524/auto/storage/goog4_request,SignedHeaders=host;\
                      x-goog-content-sha256;x-goog-date;x-goog-if-generation-match,\
                      Signature=772191959a7fb773d672c6f97baf6e7856e14dee729ce8ecc2855a3a04fe0489";
        assert_eq!(authorization(&request, &who), wanted);
    }

    #[test]
    fn times_and_paths() {
        assert_eq!(time_of(0), "19700101T000000Z");
        assert_eq!(time_of(1_369_353_600), "20130524T000000Z");
        assert_eq!(time_of(951_782_400 + 3_661), "20000229T010101Z");
        assert_eq!(time_of(4_107_542_399), "21000228T235959Z");
        assert_eq!(encode_path("a b/ä+c~.json"), "a%20b/%C3%A4%2Bc~.json");
    }

    #[test]
    fn dates_of_http() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(1_369_353_600), "Fri, 24 May 2013 00:00:00 GMT");
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT", "the example of RFC 9110");
    }

    #[test]
    fn secrets_are_not_shown() {
        let who = Credentials { key_id: "id".into(), secret: "hush".into(), token: Some("hush".into()) };
        assert!(!format!("{who:?}").contains("hush"));
    }
}
