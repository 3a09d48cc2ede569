//! The contract, made of the code: routes and types say what they are, and what holds for all of them (problems, keys, the
//! dimensions of what is served) is added here.

use ascribe_engine::respond::Opened;
use serde_json::{Value, json};
use utoipa::OpenApi;

use crate::audit::AuditLine;
use crate::problem::{PROBLEM_JSON, Problem};
use crate::routes::admin::{AuditList, Reloaded};
use crate::routes::catalog::{DatasetList, DatasetRow, ExampleList, IndexInfo, Statement};
use crate::routes::health::Health;
use crate::routes::receipts::{KeyList, ReceiptAnswer};
use crate::routes::{admin, attributions, batch, catalog, health, receipts};
use crate::wire::{Attribution, AttributionRequest, BatchAnswer, BatchRequest};

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

/// Largest number of a vector: what f32 products with it can still hold.
const NUMBER_MAX: f64 = crate::wire::NUMBER_MAX as f64;
/// Problems that every route may answer with.
const EVERYWHERE: [(&str, &str); 6] = [
    ("401", "No API key, or none that is valid"),
    ("403", "The key may not do this"),
    ("429", "More requests than the key's rate"),
    ("500", "A fault of the server"),
    ("503", "Too much to do; see `retry-after`"),
    ("504", "The answer took too long"),
];
/// Problems of routes with a body.
const WITH_BODY: [(&str, &str); 6] = [
    ("400", "The body cannot be read"),
    ("404", "A model, method, example or dataset of the body that is not there"),
    ("408", "The body did not arrive in time"),
    ("413", "The body, or a text in it, is too large"),
    ("415", "The body is of no known kind"),
    ("422", "A field of the body cannot be used"),
];

/// The contract of a server that serves `opened`.
pub fn document(opened: &Opened) -> Value {
    let mut document = serde_json::to_value(Contract::openapi()).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let schemas = &mut document["components"]["schemas"];
    let request = &schemas["AttributionRequest"];
    let variants = variants(request, opened);
    let description = request["description"].clone();
    schemas["AttributionRequest"] = json!({ "description": description, "oneOf": variants });
    document["components"]["securitySchemes"] =
        json!({ "bearer": { "type": "http", "scheme": "bearer", "description": "An API key" } });
    // Optional: whether a key is needed is the operator's choice.
    document["security"] = json!([{}, { "bearer": [] }]);
    let Some(paths) = document["paths"].as_object_mut() else { return document };
    for (path, item) in paths {
        let Some(item) = item.as_object_mut() else { continue };
        for operation in item.values_mut() {
            let mut problems: Vec<(&str, &str)> = EVERYWHERE.to_vec();
            if operation.get("requestBody").is_some() {
                problems.extend(WITH_BODY);
            }
            if path.contains('{') {
                problems.push(("404", "No such thing"));
                problems.push(("400", "The path cannot be read"));
            }
            if path == "/admin/reload" {
                problems.push(("409", "A reload is in progress"));
                problems.push(("422", "The new generation cannot be loaded; the old one goes on"));
            }
            for (status, description) in problems {
                operation["responses"][status] = json!({
                    "description": description,
                    "content": { PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } } },
                });
            }
            if path == "/v1/attributions:batch" {
                let line = "A question per line is answered by a line each, an answer or a problem, in order";
                operation["responses"]["200"]["content"]["application/x-ndjson"] =
                    json!({ "schema": { "type": "string", "description": line } });
            }
            headers(operation);
            if path.starts_with("/admin/") {
                operation["security"] = json!([{ "bearer": [] }]);
            }
        }
    }
    document
}

/// What stands at the head of answers: the id of every one, and of a refusal for now when to come again.
fn headers(operation: &mut Value) {
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    let id = json!({
        "description": "Names the request in the server's log",
        "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
    });
    let later = json!({ "description": "Seconds", "schema": { "type": "integer", "minimum": 0 } });
    for (status, response) in responses {
        response["headers"]["x-request-id"] = id.clone();
        if status == "429" || status == "503" {
            response["headers"]["retry-after"] = later.clone();
        }
    }
}

/// The request by what is explained: each form has its own required field, methods and lengths.
fn variants(request: &Value, opened: &Opened) -> Vec<Value> {
    let is_store = opened.model == "none";
    let names = |wanted: &[&str]| -> Vec<Value> {
        opened.methods.iter().filter(|m| wanted.is_empty() || wanted.contains(&m.as_str())).map(|m| json!(m)).collect()
    };
    let vector = |dim: usize| {
        let number = json!({ "type": "number", "format": "float", "minimum": -NUMBER_MAX, "maximum": NUMBER_MAX });
        json!({ "type": "array", "items": number, "minItems": dim, "maxItems": dim })
    };
    let mut forms: Vec<(&str, Value, &[&str], Vec<Value>)> = Vec::new();
    let texts: &[&str] = &["prompt", "tokens", "verbatim"];
    if !is_store {
        let text = json!({ "type": "string", "minLength": 1, "maxLength": 8192 });
        forms.push(("completion", text, texts, names(&[])));
        let last = opened.examples.saturating_sub(1);
        let number = json!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": last });
        forms.push(("example", number, &texts[1..], names(&[])));
        forms.push(("features", vector(opened.dim), &[], names(&["block_fisher"])));
        forms.push(("embedding", vector(opened.embedding_dim), &[], names(&["embedding"])));
    } else {
        forms.push(("embedding", vector(opened.embedding_dim), &[], names(&[])));
        forms.push(("features", vector(opened.dim), &[], names(&[])));
    }
    let of = |(field, schema, more, methods): (&str, Value, &[&str], Vec<Value>)| {
        let mut form = request.clone();
        form["required"] = json!([field]);
        form["additionalProperties"] = json!(false);
        form["description"] = json!(format!("By `{field}`."));
        if let Some(properties) = form["properties"].as_object_mut() {
            let optional = ["prompt", "completion", "example", "embedding", "features", "tokens", "verbatim"];
            properties
                .retain(|name, _| name == field || !optional.contains(&name.as_str()) || more.contains(&name.as_str()));
            properties.insert(field.to_owned(), schema);
            let or_null = |mut values: Vec<Value>| {
                values.push(Value::Null);
                json!({ "type": ["string", "null"], "enum": values })
            };
            properties.insert("method".into(), or_null(methods));
            properties.insert("model".into(), or_null(vec![json!(opened.model)]));
            if more.is_empty() {
                // Vectors have no tokens; saying so is allowed.
                for name in ["tokens", "verbatim"] {
                    properties.insert(name.into(), json!({ "type": "boolean", "const": false }));
                }
            }
        }
        form
    };
    forms.into_iter().map(of).collect()
}
