//! What the three services have in common: a blocking client, requests that are tried again, refusals in the server's own words.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ascribe_store::StoreError;
use ascribe_store::features::Objects;
use ureq::http::Response;
use ureq::http::request::Builder;
use ureq::{Agent, Body};

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

/// A client of one place.
#[derive(Debug)]
pub(crate) struct Web {
    agent: Agent,
    /// `s3://bucket/prefix`.
    pub name: String,
    /// Statuses of a server that had better be asked again.
    is_busy: fn(u16) -> bool,
}

/// How a request ended.
pub(crate) struct Answer {
    pub status: u16,
    pub response: Response<Body>,
    /// An earlier try may have been carried out.
    pub is_repeated: bool,
}

impl Answer {
    /// A header's text, if there is one.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// The length that the server says the object has.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }
}

/// What a request is for, in messages.
pub(crate) struct Call<'a> {
    pub action: &'static str,
    pub method: &'a str,
    pub key: &'a str,
}

impl Web {
    /// A client of the place that messages call `name`.
    pub fn new(name: &str, is_busy: fn(u16) -> bool) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).timeout_global(Some(WAIT));
        let agent = config.user_agent("ascribe").build().new_agent();
        Self { agent, name: name.trim_end_matches('/').to_owned(), is_busy }
    }

    /// An error at a key.
    pub fn failed(&self, action: &'static str, key: &str, error: io::Error) -> StoreError {
        StoreError::io(action, &PathBuf::from(format!("{}/{key}", self.name)), error)
    }

    /// The server's own words, with a hint of ours.
    pub fn refused(&self, call: &Call<'_>, mut answer: Answer, hint: &str) -> StoreError {
        let body = answer.response.body_mut().with_config().limit(REFUSAL_BYTES).lossy_utf8(true).read_to_string();
        let said = body.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default();
        let hint = if hint.is_empty() { String::new() } else { format!(" (hint: {hint})") };
        self.failed(call.action, call.key, io::Error::other(format!("status {}{hint}: {said}", answer.status)))
    }

    /// One request, tried again where a server was busy or the connection broke; `make` signs each anew.
    pub fn ask(
        &self,
        call: &Call<'_>,
        body: &[u8],
        make: &dyn Fn() -> io::Result<Builder>,
    ) -> Result<Answer, StoreError> {
        let mut is_repeated = false;
        for attempt in 1.. {
            let sent = make().and_then(|builder| {
                let outcome = match call.method {
                    "PUT" => self.agent.run(builder.body(body).map_err(io::Error::other)?),
                    _ => self.agent.run(builder.body(()).map_err(io::Error::other)?),
                };
                outcome.map_err(ureq::Error::into_io)
            });
            let is_last = attempt >= TRIES;
            match sent {
                Ok(response) => {
                    let status = response.status().as_u16();
                    if !(self.is_busy)(status) || is_last {
                        return Ok(Answer { status, response, is_repeated });
                    }
                    is_repeated |= status != 409 && status != 429;
                }
                Err(error) if is_last => return Err(self.failed(call.action, call.key, error)),
                Err(_) => is_repeated = true,
            }
            std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
        }
        unreachable!("the last try returns")
    }

    /// The body of an answer.
    pub fn bytes(&self, call: &Call<'_>, mut answer: Answer) -> Result<Vec<u8>, StoreError> {
        let body = answer.response.body_mut().with_config().limit(OBJECT_MAX_BYTES).read_to_vec();
        body.map_err(|error| self.failed(call.action, call.key, error.into_io()))
    }
}

/// How an object is written: what the three kinds of server say differently.
pub(crate) trait Door: Objects {
    /// Status of an object that was written.
    const WRITTEN: u16;

    /// The server's own words, with a hint.
    fn refused(&self, call: &Call<'_>, answer: Answer) -> StoreError;

    /// One request; with `create` only if there is no such object.
    fn ask(&self, call: &Call<'_>, body: &[u8], create: bool) -> Result<Answer, StoreError>;

    /// True if an object was not created because it is there.
    fn is_there(answer: &Answer) -> bool {
        answer.status == 412
    }
}

/// [`Objects::put`].
pub(crate) fn put<D: Door>(door: &D, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let call = Call { action: "write", method: "PUT", key };
    let answer = door.ask(&call, bytes, false)?;
    if answer.status == D::WRITTEN { Ok(()) } else { Err(door.refused(&call, answer)) }
}

/// [`Objects::put_new`]. Of a lost answer only the object itself can tell who wrote it: what is there and equal was this call's, or
/// another's with the same bytes, which comes to the same.
pub(crate) fn put_new<D: Door>(door: &D, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
    let call = Call { action: "create", method: "PUT", key };
    let answer = door.ask(&call, bytes, true)?;
    match answer.status {
        status if status == D::WRITTEN => Ok(true),
        _ if !D::is_there(&answer) => Err(door.refused(&call, answer)),
        _ if answer.is_repeated => Ok(door.get(key)?.is_some_and(|found| found == bytes)),
        _ => Ok(false),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> io::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs())
}

/// An error about an address or what stands behind it.
pub(crate) fn refuse(url: &str, expected: &str, found: &str) -> StoreError {
    StoreError::malformed(&PathBuf::from(url), "address", expected, found)
}

/// Bucket or container, and prefix, of `scheme://NAME/PREFIX`.
pub(crate) fn split<'a>(url: &'a str, scheme: &str, expected: &str) -> Result<(&'a str, &'a str), StoreError> {
    let rest = url.strip_prefix(scheme).ok_or_else(|| refuse(url, expected, url))?;
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    Ok((name, prefix.trim_matches('/')))
}

/// Scheme, and host with its port, of an endpoint: `https`, or `http` on this machine or where it is allowed.
pub(crate) fn endpoint<'a>(
    url: &str,
    base: &'a str,
    allow_http: bool,
    setting: &str,
) -> Result<(&'a str, &'a str), StoreError> {
    let (scheme, host) = base.split_once("://").ok_or_else(|| refuse(url, "an endpoint https://HOST", base))?;
    let is_here = ["127.0.0.1", "localhost", "[::1]"].contains(&host.rsplit_once(':').map_or(host, |(h, _)| h));
    if host.contains('/') || !(scheme == "https" || (scheme == "http" && (is_here || allow_http))) {
        let expected = format!("an endpoint https://HOST, or http://HOST with {setting}=true");
        return Err(refuse(url, &expected, base));
    }
    let default_port = if scheme == "https" { ":443" } else { ":80" };
    Ok((scheme, host.strip_suffix(default_port).unwrap_or(host)))
}
