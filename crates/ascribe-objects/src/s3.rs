//! Amazon's S3 and what speaks like it (MinIO, Ceph, R2, Garage …): four requests, signed, over a blocking client.
//!
//! Why not `object_store`'s own client: it brings a second HTTP stack with a runtime (19 crates), and it switches features of
//! `chrono` on, which builds Arrow and everything above it anew. Whoever has it at hand gives it to [`crate::Bucket`]; the four
//! calls mean the same.
//!
//! "Create if absent" is a `PUT` with `If-None-Match: *`, which S3 has since August 2024. A server that ignores it is found out
//! before anything is committed (`ascribe_store::features::push` asks it to create an object twice).

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ascribe_store::StoreError;
use ascribe_store::features::Objects;
use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use crate::sign::{Credentials, ToSign, authorization, encode_path, sha256_hex, time_of};

/// Tries of a request that a server was too busy for, or that got lost.
const TRIES: u32 = 5;
/// Pause before the second try; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// A whole request with its body may take so long: a shard of 256 MiB at 1 MB/s.
const WAIT: Duration = Duration::from_secs(300);
/// Longest object that is read into memory; shards are at most 1 GiB.
const OBJECT_MAX_BYTES: u64 = 2 << 30;
/// What is shown of a server's refusal.
const REFUSAL_BYTES: u64 = 600;

/// A prefix of a bucket.
#[derive(Debug)]
pub struct S3 {
    agent: Agent,
    /// `https://bucket.s3.eu-west-1.amazonaws.com` or `http://127.0.0.1:9000/bucket`.
    base: String,
    /// Host and port as the server sees them.
    host: String,
    /// What stands before keys in the path, percent-encoded; begins with a slash.
    path: String,
    region: String,
    who: Credentials,
    name: String,
}

/// How a request ended.
struct Answer {
    status: u16,
    response: Response<Body>,
    /// An earlier try may have been carried out.
    is_repeated: bool,
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
        let refuse =
            |expected: &str, found: &str| StoreError::malformed(&PathBuf::from(url), "address", expected, found);
        let rest = url.strip_prefix("s3://").ok_or_else(|| refuse("s3://BUCKET/PREFIX", url))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_plain) {
            return Err(refuse("a bucket of 3 to 63 lower-case letters, digits, dots and hyphens", bucket));
        }
        let key =
            |name: &'static str| lookup(name).ok_or_else(|| refuse(&format!("{name} in the environment"), "none"));
        let who = Credentials {
            key_id: key("AWS_ACCESS_KEY_ID")?,
            secret: key("AWS_SECRET_ACCESS_KEY")?,
            token: lookup("AWS_SESSION_TOKEN"),
        };
        let region = lookup("AWS_REGION").or_else(|| lookup("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = lookup("AWS_ENDPOINT_URL_S3").or_else(|| lookup("AWS_ENDPOINT_URL"));
        let (base, in_path) = match &endpoint {
            Some(endpoint) => (endpoint.trim_end_matches('/').to_owned(), format!("/{bucket}")),
            // A certificate for *.s3… does not cover a name with dots.
            None if bucket.contains('.') => (format!("https://s3.{region}.amazonaws.com"), format!("/{bucket}")),
            None => (format!("https://{bucket}.s3.{region}.amazonaws.com"), String::new()),
        };
        let (scheme, host) = base.split_once("://").ok_or_else(|| refuse("an endpoint https://HOST", &base))?;
        let is_here = ["127.0.0.1", "localhost", "[::1]"].contains(&host.rsplit_once(':').map_or(host, |(h, _)| h));
        let allowed = is_here || lookup("AWS_ALLOW_HTTP").is_some_and(|v| v == "true");
        if host.contains('/') || !(scheme == "https" || (scheme == "http" && allowed)) {
            return Err(refuse("an endpoint https://HOST, or http://HOST with AWS_ALLOW_HTTP=true", &base));
        }
        let default_port = if scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(default_port).unwrap_or(host).to_owned();
        let prefix = prefix.trim_matches('/');
        let path = match prefix.is_empty() {
            true => in_path,
            false => format!("{in_path}/{}", encode_path(prefix)),
        };
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).timeout_global(Some(WAIT));
        let agent = config.user_agent("ascribe").build().new_agent();
        let base = format!("{scheme}://{host}");
        Ok(Self { agent, base, host, path, region, who, name: url.trim_end_matches('/').to_owned() })
    }

    fn failed(&self, action: &'static str, key: &str, error: io::Error) -> StoreError {
        StoreError::io(action, &PathBuf::from(format!("{}/{key}", self.name)), error)
    }

    /// The server's own words.
    fn refused(&self, action: &'static str, key: &str, mut answer: Answer) -> StoreError {
        let body = answer.response.body_mut().with_config().limit(REFUSAL_BYTES).lossy_utf8(true).read_to_string();
        let said = body.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default();
        let region = answer.response.headers().get("x-amz-bucket-region").and_then(|v| v.to_str().ok());
        let hint = match (answer.status, region) {
            (301 | 307, Some(region)) => format!(" (hint: AWS_REGION={region})"),
            (403, _) => " (hint: are the keys, the region and the clock right?)".to_owned(),
            (501, _) => " (hint: this server knows no `If-None-Match: *`, so it cannot hold commits)".to_owned(),
            _ => String::new(),
        };
        self.failed(action, key, io::Error::other(format!("status {}{hint}: {said}", answer.status)))
    }

    /// One request, tried again where a server was busy or the connection broke.
    fn ask(
        &self,
        action: &'static str,
        method: &str,
        key: &str,
        body: &[u8],
        create: bool,
    ) -> Result<Answer, StoreError> {
        let body_sha256 = sha256_hex(body);
        let path = format!("{}/{}", self.path, encode_path(key));
        let mut is_repeated = false;
        for attempt in 1.. {
            let sent = self.signed(method, &path, &body_sha256, create).and_then(|builder| {
                let outcome = match method {
                    "PUT" => self.agent.run(builder.body(body).map_err(io::Error::other)?),
                    _ => self.agent.run(builder.body(()).map_err(io::Error::other)?),
                };
                outcome.map_err(ureq::Error::into_io)
            });
            let is_last = attempt >= TRIES;
            match sent {
                Ok(response) => {
                    let status = response.status().as_u16();
                    // 409 is two conditional writes at once: neither says who won.
                    let is_busy = matches!(status, 409 | 429 | 500 | 502..=504);
                    if !is_busy || is_last {
                        return Ok(Answer { status, response, is_repeated });
                    }
                    is_repeated |= status != 409 && status != 429;
                }
                Err(error) if is_last => return Err(self.failed(action, key, error)),
                Err(_) => is_repeated = true,
            }
            std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
        }
        unreachable!("the last try returns")
    }

    fn signed(
        &self,
        method: &str,
        path: &str,
        body_sha256: &str,
        create: bool,
    ) -> io::Result<ureq::http::request::Builder> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let time = time_of(now.as_secs());
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
        let request = ToSign { method, path, headers: &headers, body_sha256, time: &time, region };
        let authorization = authorization(&request, &self.who);
        let mut builder = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers.into_iter().filter(|(name, _)| *name != "host") {
            builder = builder.header(name, value);
        }
        Ok(builder.header("authorization", authorization))
    }
}

impl Objects for S3 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut answer = self.ask("read", "GET", key, &[], false)?;
        match answer.status {
            200 => {
                let body = answer.response.body_mut().with_config().limit(OBJECT_MAX_BYTES).read_to_vec();
                body.map(Some).map_err(|error| self.failed("read", key, error.into_io()))
            }
            404 => Ok(None),
            _ => Err(self.refused("read", key, answer)),
        }
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let answer = self.ask("measure", "HEAD", key, &[], false)?;
        let length = answer.response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok());
        match (answer.status, length) {
            (200, Some(length)) => Ok(Some(length)),
            (404, _) => Ok(None),
            _ => Err(self.refused("measure", key, answer)),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let answer = self.ask("write", "PUT", key, bytes, false)?;
        if answer.status == 200 { Ok(()) } else { Err(self.refused("write", key, answer)) }
    }

    /// Of a lost answer only the object itself can tell who wrote it: what is there and equal was this call's, or another's with
    /// the same bytes, which comes to the same.
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        let answer = self.ask("create", "PUT", key, bytes, true)?;
        match answer.status {
            200 => Ok(true),
            412 if answer.is_repeated => Ok(self.get(key)?.is_some_and(|found| found == bytes)),
            412 => Ok(false),
            _ => Err(self.refused("create", key, answer)),
        }
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
