//! Amazon's S3 and what speaks like it (MinIO, Ceph, R2, Garage …): four requests, signed, over a blocking client.
//!
//! Why not `object_store`'s own client: it brings a second HTTP stack with a runtime (19 crates), and it switches features of
//! `chrono` on, which builds Arrow and everything above it anew. Whoever has it at hand gives it to [`crate::Bucket`]; the four
//! calls mean the same.
//!
//! "Create if absent" is a `PUT` with `If-None-Match: *`, which S3 has since August 2024. A server that ignores it is found out
//! before anything is committed (`ascribe_store::features::push` asks it to create an object twice).

use std::io;

use ascribe_store::StoreError;
use ascribe_store::features::Objects;
use ureq::http::Request;
use ureq::http::request::Builder;

use crate::sign::{Credentials, Dialect, ToSign, authorization, encode_path, sha256_hex, time_of};
use crate::web::{self, Answer, Call, Door, Web, endpoint, now, refuse, split};

/// A prefix of a bucket.
#[derive(Debug)]
pub struct S3 {
    web: Web,
    /// `https://bucket.s3.eu-west-1.amazonaws.com` or `http://127.0.0.1:9000/bucket`.
    base: String,
    /// Host and port as the server sees them.
    host: String,
    /// What stands before keys in the path, percent-encoded; begins with a slash.
    path: String,
    region: String,
    who: Credentials,
}

impl S3 {
    /// Objects below `s3://BUCKET/PREFIX`. `lookup` gives the settings by their usual names: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` or `AWS_DEFAULT_REGION` [us-east-1], `AWS_ENDPOINT_URL_S3` or
    /// `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`. Keys are not read from anywhere else.
    ///
    /// # Errors
    /// An address that is none, missing keys, and an endpoint that would carry rows in the clear beyond this machine without
    /// `AWS_ALLOW_HTTP=true`.
    pub fn new(url: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let (bucket, prefix) = split(url, "s3://", "s3://BUCKET/PREFIX")?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_plain) {
            return Err(refuse(url, "a bucket of 3 to 63 lower-case letters, digits, dots and hyphens", bucket));
        }
        let key = |name: &str| lookup(name).ok_or_else(|| refuse(url, &format!("{name} in the environment"), "none"));
        let who = Credentials {
            key_id: key("AWS_ACCESS_KEY_ID")?,
            secret: key("AWS_SECRET_ACCESS_KEY")?,
            token: lookup("AWS_SESSION_TOKEN"),
        };
        let region = lookup("AWS_REGION").or_else(|| lookup("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        let given = lookup("AWS_ENDPOINT_URL_S3").or_else(|| lookup("AWS_ENDPOINT_URL"));
        let (base, in_path) = match &given {
            Some(given) => (given.trim_end_matches('/').to_owned(), format!("/{bucket}")),
            // A certificate for *.s3… does not cover a name with dots.
            None if bucket.contains('.') => (format!("https://s3.{region}.amazonaws.com"), format!("/{bucket}")),
            None => (format!("https://{bucket}.s3.{region}.amazonaws.com"), String::new()),
        };
        let allow_http = lookup("AWS_ALLOW_HTTP").is_some_and(|v| v == "true");
        let (scheme, host) = endpoint(url, &base, allow_http, "AWS_ALLOW_HTTP")?;
        let path = match prefix.is_empty() {
            true => in_path,
            false => format!("{in_path}/{}", encode_path(prefix)),
        };
        // 409 is two conditional writes at once: neither says who won.
        let web = Web::new(url, |status| matches!(status, 409 | 429 | 500 | 502..=504));
        Ok(Self { web, base: format!("{scheme}://{host}"), host: host.to_owned(), path, region, who })
    }

    fn signed(&self, method: &str, path: &str, body_sha256: &str, create: bool) -> io::Result<Builder> {
        let time = time_of(now()?);
        let mut headers =
            vec![("host", self.host.as_str()), ("x-amz-content-sha256", body_sha256), ("x-amz-date", time.as_str())];
        if create {
            headers.push(("if-none-match", "*"));
        }
        if let Some(token) = &self.who.token {
            headers.push(("x-amz-security-token", token));
        }
        headers.sort_unstable();
        let region = &self.region;
        let dialect = Dialect::Amazon;
        let request = ToSign { method, path, headers: &headers, body_sha256, time: &time, region, dialect };
        let authorization = authorization(&request, &self.who);
        let mut builder = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers.into_iter().filter(|(name, _)| *name != "host") {
            builder = builder.header(name, value);
        }
        Ok(builder.header("authorization", authorization))
    }
}

impl Door for S3 {
    const WRITTEN: u16 = 200;

    /// The server's own words.
    fn refused(&self, call: &Call<'_>, answer: Answer) -> StoreError {
        let region = answer.header("x-amz-bucket-region").map(|region| format!("AWS_REGION={region}"));
        let hint = match (answer.status, region) {
            (301 | 307, Some(region)) => region,
            (403, _) => "are the keys, the region and the clock right?".to_owned(),
            (501, _) => "this server knows no `If-None-Match: *`, so it cannot hold commits".to_owned(),
            _ => String::new(),
        };
        self.web.refused(call, answer, &hint)
    }

    fn ask(&self, call: &Call<'_>, body: &[u8], create: bool) -> Result<Answer, StoreError> {
        let body_sha256 = sha256_hex(body);
        let path = format!("{}/{}", self.path, encode_path(call.key));
        self.web.ask(call, body, &|| self.signed(call.method, &path, &body_sha256, create))
    }
}

impl Objects for S3 {
    fn name(&self) -> String {
        self.web.name.clone()
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let call = Call { action: "read", method: "GET", key };
        let answer = self.ask(&call, &[], false)?;
        match answer.status {
            200 => self.web.bytes(&call, answer).map(Some),
            404 => Ok(None),
            _ => Err(self.refused(&call, answer)),
        }
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let call = Call { action: "measure", method: "HEAD", key };
        let answer = self.ask(&call, &[], false)?;
        match (answer.status, answer.length()) {
            (200, Some(length)) => Ok(Some(length)),
            (404, _) => Ok(None),
            _ => Err(self.refused(&call, answer)),
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

    fn open(url: &str, settings: &[(&str, &str)]) -> Result<S3, String> {
        let find = |name: &str| settings.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        S3::new(url, &find).map_err(|error| error.to_string())
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hush")];

    #[test]
    fn addresses() {
        let with = |more: &[(&'static str, &'static str)]| [&KEYS[..], more].concat();
        let amazon = open("s3://rows/a/b", &with(&[("AWS_REGION", "eu-west-1")])).unwrap();
        assert_eq!((amazon.base.as_str(), amazon.path.as_str()), ("https://rows.s3.eu-west-1.amazonaws.com", "/a/b"));
        let dotted = open("s3://rows.example/", &KEYS).unwrap();
        assert_eq!(
            (dotted.base.as_str(), dotted.path.as_str()),
            ("https://s3.us-east-1.amazonaws.com", "/rows.example")
        );
        let here = open("s3://rows/x y", &with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")])).unwrap();
        assert_eq!((here.host.as_str(), here.path.as_str()), ("127.0.0.1:9000", "/rows/x%20y"));
        let port = open("s3://rows", &with(&[("AWS_ENDPOINT_URL", "https://s3.example:443")])).unwrap();
        assert_eq!((port.host.as_str(), port.name()), ("s3.example", "s3://rows".to_owned()));
    }

    #[test]
    fn what_is_refused() {
        for (url, settings, wanted) in [
            ("s3://rows", vec![], "AWS_ACCESS_KEY_ID"),
            ("gs://rows", KEYS.to_vec(), "s3://BUCKET"),
            ("s3://Rows", KEYS.to_vec(), "lower-case"),
            ("s3://rows", [&KEYS[..], &[("AWS_ENDPOINT_URL", "http://s3.example")]].concat(), "AWS_ALLOW_HTTP"),
            ("s3://rows", [&KEYS[..], &[("AWS_ENDPOINT_URL", "s3.example")]].concat(), "https://HOST"),
        ] {
            let error = open(url, &settings).unwrap_err();
            assert!(error.contains(wanted) && !error.contains("hush"), "{error}");
        }
    }
}
