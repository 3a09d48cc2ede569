//! A server process for tests: this test binary, started again as a child.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ascribe_engine::Home;
use ascribe_server::{Settings, Source};
use serde_json::{Value, json};

use crate::common::{Tiny, copy_folder, finished};

/// Tells the child that it is one.
const CHILD: &str = "ASCRIBE_SERVER_TEST_HOME";

/// Not a test: the server itself, when this binary is a child.
#[test]
#[ignore = "runs the server in the child processes of the other tests"]
fn child() {
    let Ok(home) = std::env::var(CHILD) else { return };
    let settings = Settings::layered(None, std::env::vars(), std::iter::empty()).unwrap();
    let config = settings.config().unwrap();
    ascribe_server::logging::init(&config).unwrap();
    let home = Home::find(Some(Path::new(&home))).unwrap();
    let source = Source::Run { home, dir: config.run.clone().unwrap() };
    ascribe_server::run(config, source).unwrap();
}

/// What a server derives from the run, made by one start: the others begin with a copy of it, as after a restart.
static DERIVED: LazyLock<PathBuf> = LazyLock::new(|| {
    let tiny = &finished().tiny;
    let state = tiny.root().join("derived");
    let first = Server::of(command(tiny, &[("state", state.to_str().unwrap())], None), state.clone());
    drop(first);
    state.join("cache")
});

fn state_of(tiny: &Tiny, settings: &[(&str, &str)]) -> PathBuf {
    let state = settings.iter().find(|(n, _)| *n == "state").map(|(_, v)| PathBuf::from(v));
    state.unwrap_or_else(|| tiny.root().join("out-serve"))
}

/// This binary as a server over `tiny`'s run.
fn command(tiny: &Tiny, settings: &[(&str, &str)], prelude: Option<&str>) -> Command {
    let me = std::env::current_exe().unwrap();
    let mut command = match prelude {
        None => Command::new(&me),
        Some(prelude) => {
            let mut command = Command::new("bash");
            command.arg("-c").arg(format!("{prelude}; exec \"$0\" \"$@\"")).arg(&me);
            command
        }
    };
    command
        .args(["--exact", "server::child", "--ignored", "--nocapture", "--quiet"])
        .env(CHILD, tiny.root())
        .env("ASCRIBE_SERVE_RUN", tiny.out())
        .env("ASCRIBE_SERVE_LISTEN", "127.0.0.1:0")
        .env("ASCRIBE_SERVE_LOG", "warn")
        .envs(settings.iter().map(|(n, v)| (format!("ASCRIBE_SERVE_{}", n.to_uppercase()), *v)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// A running server.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub state: PathBuf,
    pub agent: ureq::Agent,
    scheme: &'static str,
}

/// Status and body of an answer.
pub struct Reply {
    pub status: u16,
    pub body: Value,
    pub text: String,
    pub headers: Vec<(String, String)>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Server {
    /// Starts over `tiny`'s run with these settings.
    pub fn start(tiny: &Tiny, settings: &[(&str, &str)]) -> Self {
        Self::start_by(tiny, settings, None)
    }

    /// The same by way of a shell prelude, as `ulimit -f 16`.
    pub fn start_by(tiny: &Tiny, settings: &[(&str, &str)], prelude: Option<&str>) -> Self {
        let state = state_of(tiny, settings);
        if !state.exists() {
            copy_folder(&DERIVED, &state.join("cache"));
        }
        Self::of(command(tiny, settings, prelude), state)
    }

    /// What a server says that does not start.
    pub fn refused(tiny: &Tiny, settings: &[(&str, &str)]) -> String {
        let output = command(tiny, settings, None).stderr(Stdio::piped()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    fn of(mut command: Command, state: PathBuf) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with('{'));
        let Some(first) = first else { panic!("the server said nothing: {:?}", child.wait()) };
        // The rest of its output must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let announced: Value = serde_json::from_str(&first).unwrap();
        let tls = ureq::tls::TlsConfig::builder().disable_verification(true).build();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .tls_config(tls)
            .build()
            .into();
        let scheme = if announced["url"].as_str().unwrap().starts_with("https") { "https" } else { "http" };
        let address = announced["address"].as_str().unwrap().parse().unwrap();
        Self { child, address, state, agent, scheme }
    }

    pub fn url(&self, path: &str) -> String {
        let host = if self.scheme == "https" {
            format!("localhost:{}", self.address.port())
        } else {
            self.address.to_string()
        };
        format!("{}://{host}{path}", self.scheme)
    }

    pub fn get(&self, path: &str) -> Reply {
        reply(self.agent.get(self.url(path)).call())
    }

    pub fn get_with(&self, path: &str, key: &str) -> Reply {
        reply(self.agent.get(self.url(path)).header("authorization", format!("Bearer {key}")).call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(path, "application/json", &[], body.to_string().as_bytes())
    }

    pub fn post_with(&self, path: &str, body: &Value, key: &str) -> Reply {
        let bearer = format!("Bearer {key}");
        self.send(path, "application/json", &[("authorization", &bearer)], body.to_string().as_bytes())
    }

    pub fn send(&self, path: &str, content_type: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut request = self.agent.post(self.url(path)).header("content-type", content_type);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        reply(request.send(body))
    }

    /// An attribution of the n-th held-out response.
    pub fn example(&self, n: usize, receipt: bool) -> Reply {
        self.post("/v1/attributions", &json!({ "example": n, "k": 2, "receipt": receipt }))
    }

    pub fn admin(&self) -> String {
        std::fs::read_to_string(self.state.join("admin.token")).unwrap().trim().to_owned()
    }

    pub fn reload(&self) -> Reply {
        self.post_with("/admin/reload", &json!({}), &self.admin())
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for the end; `None` for a death by signal.
    pub fn wait(&mut self) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server does not end");
    }

    /// Resident memory, KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn reply(outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut response = match outcome {
        Ok(response) => response,
        // A connection that ended: status 0 tells tests apart from an answer.
        Err(error) => {
            return Reply { status: 0, body: Value::Null, text: error.to_string(), headers: Vec::new() };
        }
    };
    let headers = response.headers().iter();
    let headers = headers.map(|(n, v)| (n.to_string(), v.to_str().unwrap_or_default().to_owned())).collect();
    let status = response.status().as_u16();
    let mut text = String::new();
    drop(response.body_mut().as_reader().read_to_string(&mut text));
    Reply { status, body: serde_json::from_str(&text).unwrap_or(Value::Null), text, headers }
}
