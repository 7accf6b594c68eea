//! One operation of a document.

use serde_json::{Value, json};

/// Form of an operation's errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    /// A sentence, or a problem as RFC 9457 describes it for clients that accept one.
    Problem,
    /// The words of the limits: `error` and `message`.
    Limits,
    /// The envelope of the fleet.
    Envelope,
}

/// A method on a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    value: Value,
    errors: Errors,
}

impl Operation {
    /// `id` is its name in generated clients.
    pub(super) fn new(
        method: &'static str,
        path: &'static str,
        id: &str,
        tag: &str,
        summary: &str,
    ) -> Self {
        let mut operation = Self {
            method,
            path,
            errors: Errors::Problem,
            value: json!({
                "operationId": id, "tags": [tag], "summary": summary,
                "parameters": [], "responses": {},
            }),
        };
        for name in path.split('{').skip(1) {
            let name = name.split('}').next().unwrap_or(name);
            let (schema, text) = (json!({ "type": "string" }), path_parameter(path, name));
            operation = operation.parameter("path", name, schema, true, text);
        }
        operation
    }

    pub(super) const fn errors(mut self, errors: Errors) -> Self {
        self.errors = errors;
        self
    }

    fn parameter(
        mut self,
        place: &str,
        name: &str,
        schema: Value,
        required: bool,
        text: &str,
    ) -> Self {
        let mut parameter =
            json!({ "in": place, "name": name, "required": required, "schema": schema });
        if !text.is_empty() {
            parameter["description"] = json!(text);
        }
        if let Some(all) = self.value["parameters"].as_array_mut() {
            all.push(parameter);
        }
        self
    }

    pub(super) fn query(self, name: &str, schema: Value, text: &str) -> Self {
        self.parameter("query", name, schema, false, text)
    }

    pub(super) fn required_query(self, name: &str, schema: Value, text: &str) -> Self {
        self.parameter("query", name, schema, true, text)
    }

    pub(super) fn header(self, name: &str, text: &str) -> Self {
        self.parameter("header", name, json!({ "type": "string" }), false, text)
    }

    /// The key that makes a retry harmless.
    pub(super) fn idempotent(self) -> Self {
        let text =
            "Makes a retry harmless: the same key with the same request is carried out once.";
        self.header("Idempotency-Key", text)
    }

    /// The body: media types with their schemas.
    pub(super) fn body(mut self, required: bool, kinds: &[(&str, Value)]) -> Self {
        let content: serde_json::Map<String, Value> = kinds
            .iter()
            .map(|(kind, schema)| ((*kind).to_owned(), json!({ "schema": schema })))
            .collect();
        self.value["requestBody"] = json!({ "required": required, "content": content });
        self.refuses(&[
            (408, "The body took too long"),
            (413, "The body is over the limit"),
            (415, "The body is encoded or of a type that is not taken"),
            (422, "The body is readable, and cannot be meant"),
        ])
    }

    pub(super) fn json(self, schema: Value) -> Self {
        self.body(true, &[("application/json", schema)])
    }

    /// An answer with a body.
    pub(super) fn answers(mut self, status: u16, text: &str, kind: &str, schema: Value) -> Self {
        self.value["responses"][status.to_string()] = json!({
            "description": text,
            "content": { kind: { "schema": schema } },
        });
        self
    }

    pub(super) fn answers_json(self, status: u16, text: &str, schema: Value) -> Self {
        self.answers(status, text, "application/json", schema)
    }

    pub(super) fn answers_text(self, status: u16, text: &str) -> Self {
        self.answers(status, text, "text/plain", json!({ "type": "string" }))
    }

    /// An answer without a body.
    pub(super) fn answers_empty(mut self, status: u16, text: &str) -> Self {
        self.value["responses"][status.to_string()] = json!({ "description": text });
        self
    }

    /// A header of an answer.
    pub(super) fn sets(mut self, status: u16, name: &str, text: &str) -> Self {
        self.value["responses"][status.to_string()]["headers"][name] =
            json!({ "description": text, "schema": { "type": "string" } });
        self
    }

    /// Ways to be refused that are the operation's own.
    pub(super) fn refuses(mut self, refusals: &[(u16, &str)]) -> Self {
        for (status, text) in refusals {
            self.value["responses"][status.to_string()] = self.refusal(text);
        }
        self
    }

    fn refusal(&self, text: &str) -> Value {
        let problem = json!({ "schema": reference("Problem") });
        let own = match self.errors {
            Errors::Problem => ("text/plain", json!({ "schema": { "type": "string" } })),
            Errors::Limits => (
                "application/json",
                json!({ "schema": { "type": "object", "properties": {
                    "error": { "type": "string" }, "message": { "type": "string" },
                } } }),
            ),
            Errors::Envelope => (
                "application/json",
                json!({ "schema": reference("Failure") }),
            ),
        };
        json!({
            "description": text,
            "content": { own.0: own.1, "application/problem+json": problem },
        })
    }

    /// Wants a key of the fleet.
    pub(super) fn keyed(mut self) -> Self {
        self.value["security"] = json!([{ "key": [] }, { "bearer": [] }]);
        self.refuses(&[
            (401, "The key is missing or wrong"),
            (403, "The key may not do this"),
        ])
    }

    /// The same where no key may be needed.
    pub(super) fn perhaps_keyed(mut self) -> Self {
        self = self.keyed();
        self.value["security"] = json!([{ "key": [] }, { "bearer": [] }, {}]);
        self
    }

    pub(super) fn into_value(mut self) -> Value {
        for (status, text) in [
            (400, "Called wrongly; the answer says how"),
            (
                429,
                "Too many requests, or full; `Retry-After` says when to try again",
            ),
            (500, "Damaged; the log says what"),
            (
                503,
                "Busy, or a store does not answer; the same request may be sent again",
            ),
        ] {
            let refusal = self.refusal(text);
            let known = &mut self.value["responses"][status.to_string()];
            if known.is_null() {
                *known = refusal;
            }
        }
        if self.value["parameters"]
            .as_array()
            .is_some_and(Vec::is_empty)
            && let Some(value) = self.value.as_object_mut()
        {
            value.remove("parameters");
        }
        self.value
    }
}

/// A schema by its name.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// An object whose properties have these schemas; those whose names end with `?` may be absent.
pub(super) fn object(properties: &[(&str, Value)]) -> Value {
    let schemas: serde_json::Map<String, Value> = properties
        .iter()
        .map(|(name, schema)| (name.trim_end_matches('?').to_owned(), schema.clone()))
        .collect();
    let required: Vec<&str> = properties
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !name.ends_with('?'))
        .collect();
    json!({ "type": "object", "properties": schemas, "required": required })
}

pub(super) fn string() -> Value {
    json!({ "type": "string" })
}

pub(super) fn boolean() -> Value {
    json!({ "type": "boolean" })
}

pub(super) fn number() -> Value {
    json!({ "type": "number" })
}

/// A whole number from this one.
pub(super) fn integer(least: i64) -> Value {
    json!({ "type": "integer", "minimum": least })
}

pub(super) fn between(least: i64, most: i64) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

pub(super) fn uuid() -> Value {
    json!({ "type": "string", "format": "uuid" })
}

pub(super) fn time() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

pub(super) fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

/// The schema, or null.
pub(super) fn nullable(schema: Value) -> Value {
    json!({ "oneOf": [schema, { "type": "null" }] })
}

/// RFC 9457.
pub(super) fn problem() -> Value {
    object(&[
        ("type", string()),
        ("title", string()),
        ("status", integer(400)),
        ("detail", string()),
        ("instance?", string()),
        ("request_id?", string()),
    ])
}

/// The description of a parameter in a path.
fn path_parameter(path: &str, name: &str) -> &'static str {
    match (name, path) {
        ("sku", _) => "The SKU.",
        ("version", _) => "Number of the version.",
        ("id", path) if path.contains("/orders/") => "Id of the order.",
        ("id", path) if path.contains("/users/") => "Id of the user.",
        ("id", path) if path.contains("/agents/") => "Id of the agent.",
        ("id", _) => "Id of the task.",
        _ => "",
    }
}
