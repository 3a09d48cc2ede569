//! Schemas that depend on what is served: questions by what they explain, rows of numbers, settings beside them.

use ascribe_engine::respond::Opened;
use serde_json::{Value, json};

use crate::params::{
    AMOUNT, DATASETS, DTYPE, IDEMPOTENCY_KEY, K, KIND, LICENCES, METHOD, MIN_SCORE, OWNERS, PAYMENT, PAYMENT_V1, Param,
    Place, RECEIPT, SHAPE,
};
use crate::routes::settings::{DTYPES, Rows};
use crate::wire::{DEFAULT_K, MAX_BATCH, MAX_FILTER, MAX_K};

/// Largest number of a vector: what f32 products with it can still hold.
const NUMBER_MAX: f64 = crate::wire::NUMBER_MAX as f64;

/// The lengths of rows that are served, each once.
fn lengths(opened: &Opened) -> Vec<usize> {
    let mut lengths = vec![opened.embedding_dim, opened.dim];
    lengths.dedup();
    lengths
}

/// A parameter of an operation; `rows` is what its binary body may have at most.
pub(super) fn parameter(param: &Param, opened: &Opened, rows: usize) -> Value {
    let place = match param.place {
        Place::Header => "header",
        Place::Query => "query",
    };
    json!({
        "name": param.name,
        "in": place,
        // A path's own parameters and amounts are the only ones that nobody may leave out.
        "required": std::ptr::eq(param, &AMOUNT),
        "description": param.about,
        "schema": schema(param, opened, rows),
    })
}

fn schema(param: &Param, opened: &Opened, rows: usize) -> Value {
    let is = |other: &'static Param| std::ptr::eq(param, other);
    if is(&SHAPE) {
        let lengths: Vec<String> = lengths(opened).iter().map(usize::to_string).collect();
        if rows == 1 {
            let shapes: Vec<String> = lengths.iter().flat_map(|d| [d.clone(), format!("1,{d}")]).collect();
            return json!({ "type": "string", "enum": shapes });
        }
        return json!({ "type": "string", "pattern": format!("^([1-9][0-9]{{0,5}},)?({})$", lengths.join("|")) });
    }
    if is(&DTYPE) {
        let names: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
        return json!({ "type": "string", "enum": names, "default": names[0] });
    }
    if is(&KIND) {
        return json!({ "type": "string", "enum": Rows::NAMES, "default": Rows::NAMES[0] });
    }
    if is(&METHOD) {
        return json!({ "type": "string", "enum": opened.methods });
    }
    if is(&K) {
        return json!({ "type": "integer", "minimum": 0, "maximum": MAX_K, "default": DEFAULT_K });
    }
    if is(&MIN_SCORE) {
        return json!({ "type": "number" });
    }
    if is(&DATASETS) || is(&OWNERS) || is(&LICENCES) {
        return json!({ "type": "array", "items": { "type": "string" }, "maxItems": MAX_FILTER });
    }
    if is(&RECEIPT) {
        return json!({ "type": "boolean", "default": false });
    }
    if is(&AMOUNT) {
        return json!({ "type": "string", "pattern": "^[0-9]{1,30}(\\.[0-9]{1,18})?$" });
    }
    if is(&PAYMENT) || is(&PAYMENT_V1) {
        return json!({ "type": "string", "contentEncoding": "base64", "contentMediaType": "application/json" });
    }
    if is(&IDEMPOTENCY_KEY) {
        return json!({ "type": "string", "minLength": 1, "maxLength": 512 });
    }
    json!({ "type": "string" })
}

/// Where a request body's octets are described, by media type.
pub(super) const OCTETS: &str = "x-ascribe-octets";

/// A body of rows of little-endian numbers. What no JSON Schema says of octets stands in `x-ascribe-rows`.
pub(super) fn octets(opened: &Opened, rows: usize, limit: usize) -> Value {
    let lengths = lengths(opened);
    let widths: serde_json::Map<String, Value> =
        DTYPES.iter().map(|(name, n)| ((*name).to_owned(), json!(n))).collect();
    let least = lengths.iter().min().copied().unwrap_or(1) * DTYPES.iter().map(|(_, n)| n).min().copied().unwrap_or(1);
    // In OpenAPI 3.1 raw octets have no type; their lengths count octets.
    let schema = json!({
        "contentMediaType": "application/octet-stream",
        "description": "Rows one after another; every row as many numbers as `x-shape` says, or else as `kind` needs",
        "minLength": least,
        "maxLength": limit,
    });
    let kinds = json!({ Rows::NAMES[0]: opened.embedding_dim, Rows::NAMES[1]: opened.dim });
    json!({
        "schema": schema,
        "x-ascribe-rows": {
            "byteOrder": "little-endian",
            "layout": "row-major",
            "bytesPerNumber": widths,
            "numbersPerRow": kinds,
            "minRows": 1,
            "maxRows": rows,
            "largestNumber": NUMBER_MAX,
        },
    })
}

/// A question a line.
pub(super) fn question_lines() -> Value {
    json!({ "schema": {
        "type": "array",
        "description": "A sequence: one question per line, each JSON on one line; as many lines as you like, blank ones count for nothing. \
            A line that is no question is answered by a problem in its place",
        "items": { "$ref": "#/components/schemas/AttributionRequest" },
    } })
}

/// An answer a line.
pub(super) fn answer_lines() -> Value {
    json!({ "schema": {
        "type": "array",
        "description": "A sequence: one answer or problem per line, in the order of the questions",
        "items": { "$ref": "#/components/schemas/BatchItem" },
    } })
}

/// Most rows of a binary body of a batch whose answer is one object.
pub(super) const BATCH_ROWS: usize = MAX_BATCH;

/// The request by what is explained: each form has its own required field, methods and lengths.
pub(super) fn variants(request: &Value, opened: &Opened) -> Vec<Value> {
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
