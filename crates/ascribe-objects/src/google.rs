//! Google's Cloud Storage by its XML interface: the same four requests, with an access token or signed with an HMAC key.
//!
//! Source: "XML API" and "Request preconditions", Cloud Storage documentation. "Create if absent" is a `PUT` with
//! `x-goog-if-generation-match: 0`; the answer to the second is 412. Service account files are not read: `gcloud auth
//! print-access-token` (or the metadata of a machine) gives a token, `gcloud storage hmac create` a key.

use std::io;

use ascribe_store::StoreError;
use ascribe_store::features::Objects;
use ureq::http::Request;
use ureq::http::request::Builder;

use crate::sign::{Credentials, Dialect, ToSign, authorization, encode_path, sha256_hex, time_of};
use crate::web::{self, Answer, Call, Door, Web, endpoint, now, refuse, split};

const CREATE: (&str, &str) = ("x-goog-if-generation-match", "0");

/// A prefix of a bucket.
#[derive(Debug)]
pub struct Google {
    web: Web,
    /// `https://storage.googleapis.com`.
    base: String,
    /// Host and port as the server sees them.
    host: String,
    /// `/bucket/prefix`, percent-encoded.
    path: String,
    who: Who,
}

/// Who asks.
enum Who {
    /// Whoever has this token.
    Token(String),
    /// Whoever has this HMAC key.
    Key(Credentials),
    /// Nobody in particular: an emulator.
    Anybody,
}

impl std::fmt::Debug for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token"),
            Self::Key(who) => who.fmt(f),
            Self::Anybody => f.write_str("Anybody"),
        }
    }
}

impl Google {
    /// Objects below `gs://BUCKET/PREFIX`. `lookup` gives the settings by their usual names: `CLOUDSDK_AUTH_ACCESS_TOKEN`, or
    /// `GS_ACCESS_KEY_ID` with `GS_SECRET_ACCESS_KEY`; `STORAGE_EMULATOR_HOST`, which needs neither; `GS_ALLOW_HTTP`.
    ///
    /// # Errors
    /// An address that is none, missing keys, and an endpoint that would carry rows in the clear beyond this machine without
    /// `GS_ALLOW_HTTP=true`.
    pub fn new(url: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let (bucket, prefix) = split(url, "gs://", "gs://BUCKET/PREFIX")?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if !(3..=222).contains(&bucket.len()) || !bucket.chars().all(is_plain) {
            return Err(refuse(url, "a bucket of lower-case letters, digits, dots, hyphens and underscores", bucket));
        }
        let emulator = lookup("STORAGE_EMULATOR_HOST").map(|host| match host.contains("://") {
            true => host.trim_end_matches('/').to_owned(),
            false => format!("http://{host}"),
        });
        let token = lookup("CLOUDSDK_AUTH_ACCESS_TOKEN");
        let who = match (token, lookup("GS_ACCESS_KEY_ID"), lookup("GS_SECRET_ACCESS_KEY")) {
            (Some(token), ..) => Who::Token(token.trim().to_owned()),
            (None, Some(key_id), Some(secret)) => Who::Key(Credentials { key_id, secret, token: None }),
            _ if emulator.is_some() => Who::Anybody,
            _ => {
                let expected =
                    "CLOUDSDK_AUTH_ACCESS_TOKEN, or GS_ACCESS_KEY_ID and GS_SECRET_ACCESS_KEY, in the environment";
                return Err(refuse(url, expected, "none"));
            }
        };
        let base = emulator.unwrap_or_else(|| "https://storage.googleapis.com".to_owned());
        let allow_http = lookup("GS_ALLOW_HTTP").is_some_and(|v| v == "true");
        let (scheme, host) = endpoint(url, &base, allow_http, "GS_ALLOW_HTTP")?;
        let path = match prefix.is_empty() {
            true => format!("/{bucket}"),
            false => format!("/{bucket}/{}", encode_path(prefix)),
        };
        let web = Web::new(url, |status| matches!(status, 408 | 429 | 500 | 502..=504));
        Ok(Self { web, base: format!("{scheme}://{host}"), host: host.to_owned(), path, who })
    }

    fn signed(&self, method: &str, path: &str, body_sha256: &str, create: bool) -> io::Result<Builder> {
        let mut builder = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if create {
            builder = builder.header(CREATE.0, CREATE.1);
        }
        match &self.who {
            Who::Anybody => Ok(builder),
            Who::Token(token) => Ok(builder.header("authorization", format!("Bearer {token}"))),
            Who::Key(who) => {
                let time = time_of(now()?);
                let own = [("x-goog-content-sha256", body_sha256), ("x-goog-date", time.as_str())];
                let mut headers = [&[("host", self.host.as_str())], &own[..]].concat();
                headers.extend(create.then_some(CREATE));
                let (region, dialect) = ("auto", Dialect::Google);
                let request = ToSign { method, path, headers: &headers, body_sha256, time: &time, region, dialect };
                let builder = own.into_iter().fold(builder, |builder, (name, value)| builder.header(name, value));
                Ok(builder.header("authorization", authorization(&request, who)))
            }
        }
    }

    /// True if only the object is missing, and not its bucket, where the server says which.
    fn missing(&self, call: &Call<'_>, answer: Answer) -> Result<bool, StoreError> {
        if answer.status != 404 || call.method == "HEAD" {
            return if answer.status == 404 { Ok(true) } else { Err(self.refused(call, answer)) };
        }
        let status = answer.status;
        let said = self.web.bytes(call, answer)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        match said.contains("NoSuchBucket") {
            false => Ok(true),
            true => Err(self.web.failed(call.action, call.key, io::Error::other(format!("status {status}: {said}")))),
        }
    }
}

impl Door for Google {
    const WRITTEN: u16 = 200;

    fn refused(&self, call: &Call<'_>, answer: Answer) -> StoreError {
        let hint = match answer.status {
            401 | 403 => "is the token or the key right, and not too old?",
            404 => "is there such a bucket?",
            _ => "",
        };
        self.web.refused(call, answer, hint)
    }

    fn ask(&self, call: &Call<'_>, body: &[u8], create: bool) -> Result<Answer, StoreError> {
        let body_sha256 = sha256_hex(body);
        let path = format!("{}/{}", self.path, encode_path(call.key));
        self.web.ask(call, body, &|| self.signed(call.method, &path, &body_sha256, create))
    }
}

impl Objects for Google {
    fn name(&self) -> String {
        self.web.name.clone()
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let call = Call { action: "read", method: "GET", key };
        let answer = self.ask(&call, &[], false)?;
        match answer.status {
            200 => self.web.bytes(&call, answer).map(Some),
            _ => self.missing(&call, answer).map(|_| None),
        }
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let call = Call { action: "measure", method: "HEAD", key };
        let answer = self.ask(&call, &[], false)?;
        match (answer.status, answer.length()) {
            (200, Some(length)) => Ok(Some(length)),
            // Emulators that know no HEAD: the whole object says it as well.
            (405 | 501, _) => Ok(self.get(key)?.map(|bytes| bytes.len() as u64)),
            _ => self.missing(&call, answer).map(|_| None),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        web::put(self, key, bytes)
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        web::put_new(self, key, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(url: &str, settings: &[(&str, &str)]) -> Result<Google, String> {
        let find = |name: &str| settings.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Google::new(url, &find).map_err(|error| error.to_string())
    }

    const TOKEN: [(&str, &str); 1] = [("CLOUDSDK_AUTH_ACCESS_TOKEN", "hush")];
    const KEYS: [(&str, &str); 2] = [("GS_ACCESS_KEY_ID", "id"), ("GS_SECRET_ACCESS_KEY", "hush")];

    #[test]
    fn addresses_and_what_goes_with_a_request() {
        let cloud = open("gs://rows/a b", &TOKEN).unwrap();
        assert_eq!((cloud.base.as_str(), cloud.path.as_str()), ("https://storage.googleapis.com", "/rows/a%20b"));
        assert!(!format!("{cloud:?}").contains("hush"));
        let request = cloud.signed("PUT", "/rows/x", "", true).unwrap().body(()).unwrap();
        assert_eq!(
            (&request.headers()["authorization"], &request.headers()[CREATE.0]),
            (&"Bearer hush".parse().unwrap(), &"0".parse().unwrap())
        );
        let keyed = open("gs://rows", &KEYS).unwrap();
        assert!(!format!("{keyed:?}").contains("hush"));
        let request = keyed.signed("PUT", "/rows/x", &sha256_hex(b""), true).unwrap().body(()).unwrap();
        let said = request.headers()["authorization"].to_str().unwrap();
        let names = "SignedHeaders=host;x-goog-content-sha256;x-goog-date;x-goog-if-generation-match,";
        assert!(said.starts_with("GOOG4-HMAC-SHA256 Credential=id/") && said.contains(names), "{said}");
        let here = open("gs://rows", &[("STORAGE_EMULATOR_HOST", "127.0.0.1:9023")]).unwrap();
        assert_eq!((here.base.as_str(), here.name().as_str()), ("http://127.0.0.1:9023", "gs://rows"));
    }

    #[test]
    fn what_is_refused() {
        for (url, settings, wanted) in [
            ("gs://rows", vec![], "CLOUDSDK_AUTH_ACCESS_TOKEN"),
            ("gs://rows", vec![KEYS[0]], "GS_SECRET_ACCESS_KEY"),
            ("az://rows", TOKEN.to_vec(), "gs://BUCKET"),
            ("gs://Rows", TOKEN.to_vec(), "lower-case"),
            ("gs://rows", vec![("STORAGE_EMULATOR_HOST", "store.example")], "GS_ALLOW_HTTP"),
        ] {
            let error = open(url, &settings).unwrap_err();
            assert!(error.contains(wanted) && !error.contains("hush"), "{error}");
        }
    }
}
