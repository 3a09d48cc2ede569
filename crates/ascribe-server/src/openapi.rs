//! The contract, made of the code: routes and types say what they are, and what holds for all of them (problems, keys, the
//! dimensions of what is served) is added here.

use ascribe_book::x402::wire::{PAYMENT_REQUIRED, PAYMENT_RESPONSE, X_PAYMENT_RESPONSE};
use ascribe_engine::respond::Opened;
use serde_json::{Value, json};
use utoipa::OpenApi;

use crate::audit::AuditLine;
use crate::config::Config;
use crate::keys::Scope;
use crate::params::{
    AMOUNT, DATASETS, DTYPE, IDEMPOTENCY_KEY, K, KIND, LICENCES, METHOD, MIN_SCORE, OWNERS, PAYMENT, PAYMENT_V1,
    PREPAID, Param, RECEIPT, REQUEST_ID, SHAPE,
};
use crate::prepaid::{Balance, PaidIn};
use crate::problem::{PROBLEM_JSON, Problem};
use crate::routes::admin::{AuditList, Reloaded};
use crate::routes::catalog::{DatasetList, DatasetRow, ExampleList, IndexInfo, Statement};
use crate::routes::health::Health;
use crate::routes::receipts::{KeyList, ReceiptAnswer};
use crate::routes::{DOORS, admin, attributions, batch, catalog, health, receipts};
use crate::wire::{Attribution, AttributionRequest, BatchAnswer, BatchRequest};
use crate::x402::{self, PAID_ROUTE};

mod forms;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ascribe",
        description = "Which registered datasets caused a model's response, and what each owner gets, response by response.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    paths(
        attributions::create,
        batch::create,
        receipts::one,
        receipts::keys,
        catalog::datasets,
        catalog::dataset,
        catalog::statement,
        catalog::examples,
        catalog::index,
        health::healthz,
        health::readyz,
        health::metrics,
        health::openapi,
        admin::reload,
        admin::audit
    ),
    components(schemas(
        Problem,
        AttributionRequest,
        Attribution,
        BatchRequest,
        BatchAnswer,
        ReceiptAnswer,
        KeyList,
        DatasetList,
        DatasetRow,
        Statement,
        ExampleList,
        IndexInfo,
        Health,
        Reloaded,
        AuditList,
        AuditLine
    ))
)]
struct Contract;

/// What is sold, where a paywall is set.
#[derive(OpenApi)]
#[openapi(paths(x402::create, crate::prepaid::balance, crate::prepaid::top_up), components(schemas(Balance, PaidIn)))]
struct Sold;

/// Problems that every route may answer with.
const EVERYWHERE: [(&str, &str); 2] = [("500", "A fault of the server"), ("504", "The answer took too long")];
/// Problems of routes that may be busy.
const BUSY: (&str, &str) = ("503", "Too much to do; see `retry-after`");
/// Problems of routes that ask who asks.
const GUARDED: [(&str, &str); 3] = [
    ("401", "No API key, or none that is valid"),
    ("403", "The key may not do this"),
    ("429", "More requests than the key's rate"),
];
/// Problems of routes with a body.
const WITH_BODY: [(&str, &str); 6] = [
    ("400", "The request cannot be read"),
    ("404", "A model, method, example or dataset of the body that is not there"),
    ("408", "The body did not arrive in time"),
    ("413", "The body, or a text in it, is too large"),
    ("415", "The body is of no known kind"),
    ("422", "A field, setting or header cannot be used"),
];
/// Problems of routes with a name in their path.
const NAMED: [(&str, &str); 2] = [("400", "The path cannot be read"), ("404", "No such thing")];
/// Problems of a reload.
const RELOAD: [(&str, &str); 2] =
    [("409", "A reload is in progress"), ("422", "The new generation cannot be loaded; the old one goes on")];
/// Problems of what is sold.
const SELLING: [(&str, &str); 6] = [
    ("400", "The request cannot be read"),
    ("401", "No customer's secret, or another one"),
    ("404", "Something that the book or the question names is not there"),
    ("409", "It was done before with other contents"),
    ("422", "A field or setting cannot be used"),
    ("503", "Too much to do, or the chain does not answer; see `retry-after`"),
];

/// Beside the body: what an operation reads.
fn parameters(path: &str) -> Vec<&'static Param> {
    let mut all: Vec<&'static Param> = match path {
        "/v1/attributions" | "/v1/attributions:batch" => {
            vec![&KIND, &METHOD, &K, &MIN_SCORE, &DATASETS, &OWNERS, &LICENCES, &RECEIPT, &SHAPE, &DTYPE]
        }
        "/v1/prepaid/{customer}/top-up" => vec![&AMOUNT, &PAYMENT, &PAYMENT_V1],
        PAID_ROUTE => vec![&PAYMENT, &PAYMENT_V1, &IDEMPOTENCY_KEY],
        _ => Vec::new(),
    };
    all.push(&REQUEST_ID);
    #[cfg(feature = "otel")]
    all.extend([&crate::params::TRACE_PARENT, &crate::params::TRACE_STATE]);
    all
}

/// The contract of a server that serves `opened` by `config`.
pub fn document(opened: &Opened, config: &Config) -> Value {
    let mut contract = Contract::openapi();
    let is_selling = config.paywall.is_some();
    if is_selling {
        contract.merge(Sold::openapi());
    }
    let mut document = serde_json::to_value(contract).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let schemas = &mut document["components"]["schemas"];
    let request = &schemas["AttributionRequest"];
    let variants = forms::variants(request, opened);
    let description = request["description"].clone();
    schemas["AttributionRequest"] = json!({ "description": description, "oneOf": variants });
    document["components"]["securitySchemes"] = schemes(is_selling);
    let doors = DOORS.iter().map(|door| (door.path, door.method, door.scope, door.is_always_open()));
    let sold = x402::DOORS.iter().filter(|_| is_selling).map(|door| (door.path, door.method, None, false));
    for (path, method, scope, is_always_open) in doors.chain(sold) {
        let Some(operation) = document["paths"].get_mut(path).and_then(|item| item.get_mut(method)) else { continue };
        for (status, description) in problems(path, scope, is_always_open, operation.get("requestBody").is_some()) {
            operation["responses"][status] = problem(description);
        }
        body(operation, path, opened, config);
        let mut declared = operation["parameters"].as_array().cloned().unwrap_or_default();
        let rows = if path == "/v1/attributions:batch" { forms::BATCH_ROWS } else { 1 };
        declared.extend(parameters(path).into_iter().map(|param| forms::parameter(param, opened, rows)));
        for own in declared.iter_mut().filter(|p| p["in"] == "path") {
            own["schema"]["minLength"] = 1.into();
        }
        operation["parameters"] = declared.into();
        headers(operation, path);
        operation["security"] = security(path, scope, config);
    }
    document
}

fn schemes(is_selling: bool) -> Value {
    let mut schemes = json!({ "bearer": { "type": "http", "scheme": "bearer", "description": "An API key" } });
    if is_selling {
        schemes["prepaid"] =
            json!({ "type": "apiKey", "in": "header", "name": PREPAID.name, "description": PREPAID.about });
    }
    schemes
}

/// Who may ask: with the scope that a key needs, where keys are needed at all.
fn security(path: &str, scope: Option<Scope>, config: &Config) -> Value {
    let needs = |scope: Scope| json!({ "bearer": [serde_json::to_value(scope).unwrap_or_default()] });
    match scope {
        Some(Scope::Admin) => json!([needs(Scope::Admin)]),
        Some(scope) if config.api_keys.is_some() => json!([needs(scope)]),
        // Whether a key is needed is the operator's choice; one that is sent must be valid.
        Some(scope) => json!([{}, needs(scope)]),
        None if path == PAID_ROUTE => json!([{}, { "prepaid": [] }]),
        None if x402::DOORS.iter().any(|door| door.path == path) => json!([{ "prepaid": [] }]),
        None => json!([{}]),
    }
}

/// Statuses other than success, of an operation.
fn problems(
    path: &str,
    scope: Option<Scope>,
    is_always_open: bool,
    has_body: bool,
) -> Vec<(&'static str, &'static str)> {
    let mut all = EVERYWHERE.to_vec();
    if !is_always_open {
        all.push(BUSY);
    }
    if path == "/readyz" {
        all.push(("503", "It drains, and takes no more work soon; see `retry-after`"));
    }
    if scope.is_some() {
        all.extend(GUARDED);
    }
    let is_sold = x402::DOORS.iter().any(|door| door.path == path);
    if has_body {
        // What is sold has the time limit of the whole request.
        all.extend(WITH_BODY.iter().filter(|(status, _)| !is_sold || *status != "408"));
    }
    if path.contains('{') {
        all.extend(NAMED);
    }
    if path == "/admin/reload" {
        all.extend(RELOAD);
    }
    if is_sold {
        all.extend(SELLING);
    }
    all
}

fn problem(description: &str) -> Value {
    json!({
        "description": description,
        "content": { PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } } },
    })
}

/// Bodies that JSON's types do not say, and quotes.
fn body(operation: &mut Value, path: &str, opened: &Opened, config: &Config) {
    let rows = match path {
        "/v1/attributions" => 1,
        "/v1/attributions:batch" => forms::BATCH_ROWS,
        PAID_ROUTE | "/v1/prepaid/{customer}/top-up" => {
            operation["responses"]["402"] = json!({
                "description": "The quote (x402), or a payment that does not buy this",
                "content": {
                    "application/json": { "schema": quote() },
                    PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } },
                },
            });
            return;
        }
        _ => return,
    };
    // Not among `content`: whether octets are valid depends on headers and query, which no schema says, so a client that reads
    // schemas alone would be told that any octets are welcome.
    operation["requestBody"][forms::OCTETS] =
        json!({ "application/octet-stream": forms::octets(opened, rows, config.body_limit) });
    let content = &mut operation["requestBody"]["content"];
    if rows > 1 {
        for kind in batch::LINES {
            content[kind] = forms::question_lines();
        }
        operation["responses"]["200"]["content"][batch::NDJSON] = forms::answer_lines();
    }
}

/// What a request without a payment is told, in the words of x402's first version.
fn quote() -> Value {
    json!({
        "type": "object",
        "required": ["x402Version", "error", "accepts"],
        "properties": {
            "x402Version": { "type": "integer" },
            "error": { "type": "string" },
            "accepts": { "type": "array", "minItems": 1, "items": { "type": "object" } },
        },
    })
}

/// What stands at the head of answers: the id of every one, of a refusal for now when to come again, of what is sold what was paid.
fn headers(operation: &mut Value, path: &str) {
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    let text = |about: &str| json!({ "description": about, "schema": { "type": "string" } });
    let id = json!({
        "description": "Names the request in the server's log",
        "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
    });
    let later = json!({ "description": "Seconds", "schema": { "type": "integer", "minimum": 0 } });
    let is_sold = x402::DOORS.iter().any(|door| door.path == path);
    for (status, response) in responses {
        let mut put = |name: &str, header: Value| response["headers"][name] = header;
        put(REQUEST_ID.name, id.clone());
        match status.as_str() {
            "429" | "503" => put("retry-after", later.clone()),
            "401" if !is_sold => put("www-authenticate", text("How to say who asks")),
            "402" => {
                put(PAYMENT_REQUIRED, text("The quote of x402, version 2: base64 of its JSON"));
                put("retry-after", later.clone());
            }
            _ => {}
        }
        if is_sold && matches!(status.as_str(), "200" | "402") && path != "/v1/prepaid/{customer}" {
            put(PAYMENT_RESPONSE, text("What became of the payment, of version 2: base64 of JSON"));
            put(X_PAYMENT_RESPONSE, text("The same of version 1"));
        }
        if path == PAID_ROUTE && status == "200" {
            put("prepaid-balance", text("What is left of the balance that paid"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use ascribe_core::Digest;

    use super::*;
    use crate::config::Settings;

    fn contract(settings: &[(&str, &str)]) -> Value {
        let flags = [("run", "r")].iter().chain(settings).map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let config = Settings::layered(None, std::iter::empty(), flags).unwrap().config().unwrap();
        let zero = Digest([0; 32]);
        let opened = Opened {
            generation: "g".into(),
            model: "tiny".into(),
            model_sha256: zero,
            run_id: "run".into(),
            spec_hash: zero,
            registry: zero,
            corpus: zero,
            rows_blake3: "b".into(),
            rows: 9,
            dim: 20,
            embedding_dim: 8,
            datasets: 3,
            methods: vec!["calibrated".into(), "block_fisher".into(), "embedding".into()],
            examples: 5,
        };
        document(&opened, &config)
    }

    fn operations(contract: &Value) -> BTreeSet<(String, String)> {
        let paths = contract["paths"].as_object().unwrap().iter();
        let of = |(path, item): (&String, &Value)| -> Vec<(String, String)> {
            item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())).collect()
        };
        paths.flat_map(of).collect()
    }

    #[test]
    fn every_door_is_an_operation_and_every_operation_a_door() {
        let doors = |sold: bool| -> BTreeSet<(String, String)> {
            let free = DOORS.iter().map(|door| (door.path, door.method));
            let sold = x402::DOORS.iter().filter(|_| sold).map(|door| (door.path, door.method));
            free.chain(sold).map(|(path, method)| (path.to_owned(), method.to_owned())).collect()
        };
        for (settings, sold) in [(&[][..], false), (&[("paywall", "wall.toml")][..], true)] {
            let contract = contract(settings);
            assert_eq!(operations(&contract), doors(sold));
            let of = |(path, method): &(String, String)| contract["paths"][path][method].clone();
            let all: Vec<Value> = operations(&contract).iter().map(of).collect();
            let ids: BTreeSet<&str> = all.iter().map(|o| o["operationId"].as_str().unwrap()).collect();
            assert_eq!(ids.len(), all.len());
            assert!(all.iter().all(|o| o["responses"]["500"].is_object() && o["security"].is_array()));
        }
    }

    /// Whatever `$ref` names is there.
    #[test]
    fn references_lead_somewhere() {
        fn walk<'v>(value: &'v Value, found: &mut BTreeSet<&'v str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| walk(value, found));
                }
                Value::Array(all) => all.iter().for_each(|value| walk(value, found)),
                _ => {}
            }
        }
        let contract = contract(&[("paywall", "wall.toml")]);
        let mut found = BTreeSet::new();
        walk(&contract, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            assert!(contract.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
        }
    }

    #[test]
    fn keys_are_needed_where_there_are_keys() {
        let security = |settings: &[(&str, &str)], path: &str, method: &str| {
            contract(settings)["paths"][path][method]["security"].clone()
        };
        let keys = &[("api_keys", "keys.json")][..];
        assert_eq!(security(&[], "/v1/datasets", "get"), json!([{}, { "bearer": ["read"] }]));
        assert_eq!(security(keys, "/v1/datasets", "get"), json!([{ "bearer": ["read"] }]));
        assert_eq!(security(&[], "/admin/reload", "post"), json!([{ "bearer": ["admin"] }]));
        assert_eq!(security(keys, "/healthz", "get"), json!([{}]));
    }

    /// Headers and settings are read by way of `params` alone, and what is declared there is declared in the contract.
    #[test]
    fn nothing_is_read_that_the_contract_does_not_say() {
        // Those of HTTP itself, which OpenAPI has other places for, and one of an answer.
        const OF_HTTP: [&str; 6] =
            ["AUTHORIZATION", "CONTENT_TYPE", "CONTENT_LENGTH", "ACCEPT", "IF_NONE_MATCH", "\"allow\""];
        fn sources(dir: &Path, out: &mut Vec<(String, String)>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => sources(&path, out),
                    false => out.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap())),
                }
            }
        }
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let mut n_read = 0;
        for (file, text) in
            files.iter().filter(|(file, _)| !file.ends_with("/params.rs") && !file.ends_with("/openapi.rs"))
        {
            let text = text.split("#[cfg(test)]").next().unwrap();
            assert!(!text.contains("RawQuery") && !text.contains("TypedHeader"), "{file} reads a query by itself");
            for pattern in ["eaders.get(", "eaders().get(", "eaders.get_all(", "eaders().get_all("] {
                for (at, _) in text.match_indices(pattern) {
                    let name: String = text[at + pattern.len()..].chars().take_while(|c| *c != ')').collect();
                    assert!(OF_HTTP.contains(&name.as_str()), "{file} reads the header {name} by itself");
                    n_read += 1;
                }
            }
        }
        assert!(n_read >= 5, "{n_read}");
        let params = &files.iter().find(|(file, _)| file.ends_with("/params.rs")).unwrap().1;
        let contract = contract(&[("paywall", "wall.toml")]).to_string();
        let n_declared = params.matches("pub(crate) static ").count();
        assert!(n_declared >= 11, "{n_declared}");
        for line in params.lines().filter(|line| line.starts_with("pub(crate) static ") && !line.contains("TRACE_")) {
            let name = line.trim_start_matches("pub(crate) static ").split(':').next().unwrap();
            let readers = files.iter().filter(|(file, text)| {
                !file.ends_with("/params.rs") && !file.contains("/openapi") && text.contains(name)
            });
            assert!(readers.count() > 0, "nobody reads {name}");
        }
        for param in [
            &KIND,
            &METHOD,
            &K,
            &RECEIPT,
            &SHAPE,
            &DTYPE,
            &REQUEST_ID,
            &AMOUNT,
            &MIN_SCORE,
            &DATASETS,
            &OWNERS,
            &LICENCES,
            &PAYMENT,
            &PAYMENT_V1,
            &IDEMPOTENCY_KEY,
            &PREPAID,
        ] {
            assert!(contract.contains(&format!("\"name\":\"{}\"", param.name)), "{}", param.name);
        }
    }
}
