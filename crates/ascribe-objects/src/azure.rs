//! Azure's blobs: the same four requests, signed with the account's key or carried by a shared access signature.
//!
//! Source: "Authorize with Shared Key" and "Put Blob", Azure Storage REST API reference. "Create if absent" is a `PUT` with
//! `If-None-Match: *`; the answer to the second is 409 `BlobAlreadyExists`.

use std::io;

use ascribe_store::StoreError;
use ascribe_store::features::Objects;
use ureq::http::Request;
use ureq::http::request::Builder;

use crate::base64;
use crate::sign::{encode_path, http_date, mac};
use crate::web::{self, Answer, Call, Door, Web, endpoint, now, refuse, split};

/// Version of the service that is spoken: blobs of up to 5,000 MiB in one request.
const VERSION: &str = "2021-08-06";
const BODY_TYPE: &str = "application/octet-stream";

/// A prefix of a container.
#[derive(Debug)]
pub struct Azure {
    web: Web,
    /// `https://account.blob.core.windows.net`.
    base: String,
    /// What stands before keys in the path, percent-encoded; begins with a slash.
    path: String,
    account: String,
    who: Who,
}

/// Who asks.
enum Who {
    /// The account's key.
    Key(Vec<u8>),
    /// A query that somebody else signed.
    Signed(String),
}

impl std::fmt::Debug for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key",
            Self::Signed(_) => "Signed",
        })
    }
}

impl Azure {
    /// Objects below `az://CONTAINER/PREFIX`. `lookup` gives the settings by their usual names: `AZURE_STORAGE_ACCOUNT_NAME`,
    /// `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_ENDPOINT` (of an emulator with the account in its
    /// path), `AZURE_ALLOW_HTTP`. Keys are not read from anywhere else.
    ///
    /// # Errors
    /// An address that is none, missing or unreadable keys, and an endpoint that would carry rows in the clear beyond this machine
    /// without `AZURE_ALLOW_HTTP=true`.
    pub fn new(url: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let (container, prefix) = split(url, "az://", "az://CONTAINER/PREFIX")?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(3..=63).contains(&container.len()) || !container.chars().all(is_plain) {
            return Err(refuse(url, "a container of 3 to 63 lower-case letters, digits and hyphens", container));
        }
        let missing = |what: &str| refuse(url, &format!("{what} in the environment"), "none");
        let name = "AZURE_STORAGE_ACCOUNT_NAME";
        let account = lookup(name).ok_or_else(|| missing(name))?;
        if account.is_empty() || !account.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
            return Err(refuse(url, "an account of lower-case letters and digits", &account));
        }
        let who = match (lookup("AZURE_STORAGE_ACCOUNT_KEY"), lookup("AZURE_STORAGE_SAS_TOKEN")) {
            (Some(key), _) => {
                let bad = || refuse(url, "AZURE_STORAGE_ACCOUNT_KEY in base 64", "another text");
                Who::Key(base64::decode(key.trim()).ok_or_else(bad)?)
            }
            (None, Some(query)) => Who::Signed(query.trim_start_matches('?').to_owned()),
            (None, None) => return Err(missing("AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN")),
        };
        let given = lookup("AZURE_STORAGE_ENDPOINT").map(|given| given.trim_end_matches('/').to_owned());
        let given = given.unwrap_or_else(|| format!("https://{account}.blob.core.windows.net"));
        // The account of an emulator is the first part of the path.
        let (root, in_path) = match given.strip_suffix(&format!("/{account}")) {
            Some(root) => (root, format!("/{account}/{container}")),
            None => (given.as_str(), format!("/{container}")),
        };
        let allow_http = lookup("AZURE_ALLOW_HTTP").is_some_and(|v| v == "true");
        let (scheme, host) = endpoint(url, root, allow_http, "AZURE_ALLOW_HTTP")?;
        let path = match prefix.is_empty() {
            true => in_path,
            false => format!("{in_path}/{}", encode_path(prefix)),
        };
        let web = Web::new(url, |status| matches!(status, 429 | 500 | 502..=504));
        Ok(Self { web, base: format!("{scheme}://{host}"), path, account, who })
    }

    fn signed(&self, method: &str, path: &str, len_bytes: usize, create: bool) -> io::Result<Builder> {
        let date = http_date(now()?);
        let is_put = method == "PUT";
        let mut headers = vec![("x-ms-date", date.as_str()), ("x-ms-version", VERSION)];
        if is_put {
            headers.insert(0, ("x-ms-blob-type", "BlockBlob"));
        }
        let query = match &self.who {
            Who::Signed(query) => format!("?{query}"),
            Who::Key(_) => String::new(),
        };
        let mut builder = Request::builder().method(method).uri(format!("{}{path}{query}", self.base));
        if let Who::Key(key) = &self.who {
            let resource = format!("/{}{path}", self.account);
            let text = to_sign(method, if is_put { len_bytes } else { 0 }, is_put, create, &headers, &resource);
            let signature = base64::encode(&mac(key, &text));
            builder = builder.header("authorization", format!("SharedKey {}:{signature}", self.account));
        }
        if is_put {
            builder = builder.header("content-type", BODY_TYPE);
        }
        if create {
            builder = builder.header("if-none-match", "*");
        }
        Ok(headers.into_iter().fold(builder, |builder, (name, value)| builder.header(name, value)))
    }

    /// True if only the blob is missing, and not its container.
    fn is_missing(answer: &Answer) -> bool {
        answer.status == 404 && answer.header("x-ms-error-code").is_none_or(|code| code == "BlobNotFound")
    }
}

/// The text that an account's key signs.
fn to_sign(
    method: &str,
    len_bytes: usize,
    has_type: bool,
    create: bool,
    headers: &[(&str, &str)],
    resource: &str,
) -> String {
    let length = if len_bytes == 0 { String::new() } else { len_bytes.to_string() };
    let (body_type, condition) = (if has_type { BODY_TYPE } else { "" }, if create { "*" } else { "" });
    // Encoding, language, length, MD5, type, date, modified since, match, none match, unmodified since, range.
    let fields = ["", "", &length, "", body_type, "", "", "", condition, "", ""].join("\n");
    let own: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    format!("{method}\n{fields}\n{own}{resource}")
}

impl Door for Azure {
    const WRITTEN: u16 = 201;

    fn refused(&self, call: &Call<'_>, answer: Answer) -> StoreError {
        let hint = match answer.status {
            403 => "are the account, its key and the clock right?",
            404 => "is there such a container?",
            _ => "",
        };
        self.web.refused(call, answer, hint)
    }

    fn ask(&self, call: &Call<'_>, body: &[u8], create: bool) -> Result<Answer, StoreError> {
        let path = format!("{}/{}", self.path, encode_path(call.key));
        self.web.ask(call, body, &|| self.signed(call.method, &path, body.len(), create))
    }

    /// Its error has a name of its own beside the status.
    fn is_there(answer: &Answer) -> bool {
        let code = answer.header("x-ms-error-code").unwrap_or_default();
        matches!((answer.status, code), (409, "BlobAlreadyExists") | (412, _))
    }
}

impl Objects for Azure {
    fn name(&self) -> String {
        self.web.name.clone()
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let call = Call { action: "read", method: "GET", key };
        let answer = self.ask(&call, &[], false)?;
        match answer.status {
            200 => self.web.bytes(&call, answer).map(Some),
            _ if Self::is_missing(&answer) => Ok(None),
            _ => Err(self.refused(&call, answer)),
        }
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let call = Call { action: "measure", method: "HEAD", key };
        let answer = self.ask(&call, &[], false)?;
        match (answer.status, answer.length()) {
            (200, Some(length)) => Ok(Some(length)),
            _ if Self::is_missing(&answer) => Ok(None),
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

    /// Base 64 of "key".
    const KEYS: [(&str, &str); 2] = [("AZURE_STORAGE_ACCOUNT_NAME", "acct"), ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")];

    fn open(url: &str, settings: &[(&str, &str)]) -> Result<Azure, String> {
        let find = |name: &str| settings.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Azure::new(url, &find).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses() {
        let cloud = open("az://rows/a b", &KEYS).unwrap();
        assert_eq!((cloud.base.as_str(), cloud.path.as_str()), ("https://acct.blob.core.windows.net", "/rows/a%20b"));
        let here = [&KEYS[..], &[("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:10000/acct/")]].concat();
        let here = open("az://rows", &here).unwrap();
        assert_eq!((here.base.as_str(), here.path.as_str()), ("http://127.0.0.1:10000", "/acct/rows"));
        assert_eq!(here.name(), "az://rows");
        let shared = open("az://rows", &[KEYS[0], ("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=hush")]).unwrap();
        assert!(!format!("{shared:?}").contains("hush"));
        let request = shared.signed("GET", "/rows/x", 0, false).unwrap().body(()).unwrap();
        assert_eq!(request.uri(), "https://acct.blob.core.windows.net/rows/x?sv=1&sig=hush");
        assert!(request.headers().get("authorization").is_none());
    }

    /// Laid out as the reference says: thirteen lines before the account's own headers.
    #[test]
    fn what_is_signed() {
        let headers = [("x-ms-blob-type", "BlockBlob"), ("x-ms-date", "D"), ("x-ms-version", VERSION)];
        let text = to_sign("PUT", 11, true, true, &headers, "/acct/rows/x");
        let wanted = "PUT\n\n\n11\n\napplication/octet-stream\n\n\n\n*\n\n\nx-ms-blob-type:BlockBlob\nx-ms-date:D\n\
                      x-ms-version:2021-08-06\n/acct/rows/x";
        assert_eq!(text, wanted);
        assert!(
            to_sign("GET", 0, false, false, &headers[1..], "/r").starts_with("GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date")
        );
    }

    #[test]
    fn what_is_refused() {
        for (url, settings, wanted) in [
            ("az://rows", vec![], "AZURE_STORAGE_ACCOUNT_NAME"),
            ("az://rows", vec![KEYS[0]], "AZURE_STORAGE_SAS_TOKEN"),
            ("az://rows", vec![KEYS[0], ("AZURE_STORAGE_ACCOUNT_KEY", "hush!")], "base 64"),
            ("gs://rows", KEYS.to_vec(), "az://CONTAINER"),
            ("az://Rows", KEYS.to_vec(), "lower-case"),
            (
                "az://rows",
                [&KEYS[..], &[("AZURE_STORAGE_ENDPOINT", "http://blobs.example")]].concat(),
                "AZURE_ALLOW_HTTP",
            ),
        ] {
            let error = open(url, &settings).unwrap_err();
            assert!(error.contains(wanted) && !error.contains("hush"), "{error}");
        }
    }
}
