//! The table of operations: what the API can do. The router, the checks that all requests pass and the
//! OpenAPI document are made from it, so that they cannot disagree.

use axum::response::Response;
use futures_util::future::BoxFuture;
use heddle_api::{
    resource::{MESH_CONFIG_NAME, ObjectKind},
    schema::{DNS_LABEL, Definitions, examples, reference},
    validate::form_fault,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    call::Call,
    objects, proxies,
    refusal::{Refusal, Why},
    revisions, roots, tokens, transactions, types,
};
use crate::tokens::{Revocation, Role};

/// Largest body with one object.
const OBJECT_LIMIT: usize = 4 << 20;
/// Largest body with a transaction.
const TRANSACTION_LIMIT: usize = 32 << 20;
/// Largest body of the rest.
const SMALL_LIMIT: usize = 64 << 10;

/// Does it.
pub(super) type Handler = fn(Call) -> BoxFuture<'static, Result<Response, Refusal>>;

/// One operation.
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) method: Method,
    /// As axum and OpenAPI both write it.
    pub(super) path: String,
    pub(super) summary: String,
    pub(super) tag: &'static str,
    /// The least role that may.
    pub(super) role: Role,
    pub(super) kind: Option<ObjectKind>,
    pub(super) query: &'static [Param],
    pub(super) headers: &'static [Param],
    pub(super) body: Option<BodySpec>,
    pub(super) answers: Vec<(StatusCode, &'static str, Option<Value>)>,
    pub(super) refusals: &'static [Why],
    /// Operations that the answer leads to, with their parameters, as OpenAPI's runtime expressions.
    pub(super) links: Vec<(String, &'static [(&'static str, &'static str)])>,
    /// Whether it can be watched.
    pub(super) watchable: bool,
    pub(super) handler: Handler,
}

/// What is sent.
pub(super) struct BodySpec {
    pub(super) schema: Value,
    /// Bytes.
    pub(super) limit: usize,
}

/// A parameter in the query or a header.
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) schema: fn() -> Value,
}

/// Whether the text of a parameter has the form that its schema says.
pub(super) fn check_param(schema: &Value, text: &str) -> Result<(), String> {
    match schema["type"].as_str() {
        Some("boolean") if !matches!(text, "true" | "false") => Err(format!("{text:?} is neither true nor false")),
        Some("integer") => {
            let (minimum, maximum) = (schema["minimum"].as_u64().unwrap_or(0), schema["maximum"].as_u64());
            let maximum = maximum.unwrap_or(u64::MAX);
            match text.parse::<u64>() {
                Ok(number) if (minimum..=maximum).contains(&number) => Ok(()),
                _ => Err(format!("{text:?} is no number from {minimum} to {maximum}")),
            }
        }
        Some("string") => {
            let longest = schema["maxLength"].as_u64().unwrap_or(u64::MAX);
            if text.chars().count() as u64 > longest {
                return Err(format!("has more than {longest} characters"));
            }
            let Some(pattern) = schema["pattern"].as_str() else { return Ok(()) };
            match regex::Regex::new(pattern) {
                Ok(regex) if !regex.is_match(text) => Err(form_fault(pattern, text)),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn flag() -> Value {
    json!({ "type": "boolean", "default": false })
}

const DRY_RUN: Param =
    Param { name: "dryRun", description: "Check and answer as if it were done, and do nothing.", schema: flag };

const FORCE: Param =
    Param { name: "force", description: "Do it even while a proxy is not ready for it.", schema: flag };

const SELECTOR: Param = Param {
    name: "labelSelector",
    description: "Only objects with such labels, e.g. `tier=web,env in (test, dev),!legacy`; \
                  requirements are `key=value`, `key!=value`, `key in (…)`, `key notin (…)`, `key` and `!key`.",
    schema: || json!({ "type": "string", "maxLength": 1024, "examples": ["app=orders"] }),
};

const LIST: &[Param] = &[
    SELECTOR,
    Param {
        name: "references",
        description: "Only objects that refer to this service, `<namespace>/<name>`: routes from or to it, workloads that \
                      serve it, policies for it, its namespace or the mesh. Not with `watch`.",
        schema: || {
            let label = DNS_LABEL.trim_start_matches('^').trim_end_matches('$');
            json!({ "type": "string", "pattern": format!("^{label}/{label}$"), "examples": ["shop/orders"] })
        },
    },
    Param {
        name: "limit",
        description: "At most so many; `metadata.continue` of the answer leads to the rest.",
        schema: || json!({ "type": "integer", "minimum": 1, "maximum": objects::MAX_PAGE, "default": objects::PAGE }),
    },
    Param {
        name: "continue",
        description: "Where the last page ended: its `metadata.continue`. All pages are as of one moment.",
        schema: || json!({ "type": "string", "maxLength": 512 }),
    },
    Param {
        name: "watch",
        description: "Answer with changes as they happen, a line of JSON each (WatchEvent).",
        schema: flag,
    },
    Param {
        name: "resourceVersion",
        description: "With `watch`: only changes after this version of a list. Without it, what is there comes first.",
        schema: || json!({ "type": "string", "pattern": "^[0-9]{1,18}$" }),
    },
];

const IF_MATCH: Param = Param {
    name: "If-Match",
    description: "Only if the object is at this `metadata.resourceVersion` (in quotes or not), or exists at all (`*`).",
    schema: || json!({ "type": "string", "pattern": "^(\\*|\"[0-9]{1,18}\"|[0-9]{1,18})$", "examples": ["\"42\""] }),
};

const IF_NONE_MATCH: Param = Param {
    name: "If-None-Match",
    description: "`*`: only if the object does not exist.",
    schema: || json!({ "type": "string", "enum": ["*"] }),
};

/// What any operation may be refused for.
pub(super) const ALWAYS: &[Why] = &[
    Why::Malformed,
    Why::Unauthenticated,
    Why::Forbidden,
    Why::NotAcceptable,
    Why::TooManyRequests,
    Why::Internal,
    Why::Unavailable,
];
/// What any operation with a body may be refused for.
pub(super) const WITH_BODY: &[Why] = &[Why::TooSlow, Why::TooLarge, Why::UnsupportedMediaType, Why::Invalid];

const SAME_OBJECT: &[(&str, &str)] = &[("namespace", "$request.path.namespace"), ("name", "$request.path.name")];
const SAME_ID: &[(&str, &str)] = &[("id", "$response.body#/id")];

macro_rules! handler {
    ($($path:ident)::+) => {
        |call| Box::pin($($path)::+(call))
    };
}

/// All operations; their schemas are added to the definitions.
pub(super) fn all(definitions: &mut Definitions) -> Vec<Operation> {
    definitions.add_kinds();
    types::add(definitions);
    let mut operations = Vec::new();
    for kind in ObjectKind::ALL {
        of_kind(*kind, &mut operations);
    }
    of_registry(definitions, &mut operations);
    of_tokens(definitions, &mut operations);
    of_roots(definitions, &mut operations);
    operations
}

/// What a path parameter looks like.
pub(super) fn path_param(name: &str) -> Value {
    match name {
        "revision" | "from" | "to" => json!({ "type": "integer", "minimum": 0, "maximum": i64::MAX }),
        "id" => json!({ "type": "string", "pattern": "^[0-9a-f]{16}$" }),
        "namespace" => json!({ "type": "string", "pattern": DNS_LABEL, "examples": [examples::NAMESPACE] }),
        _ => json!({ "type": "string", "pattern": DNS_LABEL, "examples": [examples::NAME] }),
    }
}

/// An operation with nothing special about it.
fn simple(id: &str, method: Method, path: &str, summary: &str, role: Role, handler: Handler) -> Operation {
    Operation {
        id: id.to_owned(),
        method,
        path: path.to_owned(),
        summary: summary.to_owned(),
        tag: "",
        role,
        kind: None,
        query: &[],
        headers: &[],
        body: None,
        answers: Vec::new(),
        refusals: &[],
        links: Vec::new(),
        watchable: false,
        handler,
    }
}

fn of_kind(kind: ObjectKind, operations: &mut Vec<Operation>) {
    let (name, plural) = (kind.as_str(), kind.plural());
    let object = || Some(reference(name));
    let body = || Some(BodySpec { schema: reference(name), limit: OBJECT_LIMIT });
    let base = |operation: Operation| Operation { kind: Some(kind), tag: kind.as_str(), ..operation };
    let one = if kind.is_namespaced() {
        format!("/v1/namespaces/{{namespace}}/{plural}/{{name}}")
    } else {
        format!("/v1/{plural}/{MESH_CONFIG_NAME}")
    };
    let mut lists = vec![(format!("list{name}"), format!("/v1/{plural}"), "in all namespaces")];
    if kind.is_namespaced() {
        lists.push((
            format!("list{name}InNamespace"),
            format!("/v1/namespaces/{{namespace}}/{plural}"),
            "in a namespace",
        ));
    }
    for (id, path, where_) in lists {
        let summary = format!("List or watch {plural} {where_}");
        operations.push(base(Operation {
            query: LIST,
            answers: vec![(StatusCode::OK, "A page of them.", Some(reference(&types::list_name(kind))))],
            refusals: &[Why::Gone, Why::Invalid],
            watchable: true,
            ..simple(&id, Method::GET, &path, &summary, Role::Viewer, handler!(objects::list))
        }));
    }
    operations.push(base(Operation {
        answers: vec![(StatusCode::OK, "The object.", object())],
        refusals: &[Why::NotFound],
        ..simple(
            &format!("get{name}"),
            Method::GET,
            &one,
            &format!("Get a {name}"),
            Role::Viewer,
            handler!(objects::get),
        )
    }));
    operations.push(base(Operation {
        query: &[DRY_RUN],
        headers: &[IF_MATCH, IF_NONE_MATCH],
        body: body(),
        answers: vec![
            (StatusCode::OK, "It was replaced, or was like this already.", object()),
            (StatusCode::CREATED, "It is new.", object()),
        ],
        refusals: &[Why::Conflict, Why::PreconditionFailed],
        links: ["get", "patch", "delete"]
            .iter()
            .filter(|verb| **verb != "delete" || kind != ObjectKind::MeshConfig)
            .map(|verb| (format!("{verb}{name}"), if kind.is_namespaced() { SAME_OBJECT } else { &[][..] }))
            .collect(),
        ..simple(
            &format!("put{name}"),
            Method::PUT,
            &one,
            &format!("Make or replace a {name}"),
            Role::Operator,
            handler!(objects::put),
        )
    }));
    operations.push(base(Operation {
        query: &[DRY_RUN],
        headers: &[IF_MATCH],
        body: Some(BodySpec { schema: json!({ "type": "object" }), limit: OBJECT_LIMIT }),
        answers: vec![(StatusCode::OK, "The object as it is now.", object())],
        refusals: &[Why::NotFound, Why::Conflict, Why::PreconditionFailed],
        ..simple(
            &format!("patch{name}"),
            Method::PATCH,
            &one,
            &format!("Change a {name} by a merge patch (RFC 7396)"),
            Role::Operator,
            handler!(objects::patch),
        )
    }));
    if kind != ObjectKind::MeshConfig {
        operations.push(base(Operation {
            query: &[DRY_RUN],
            headers: &[IF_MATCH],
            answers: vec![(StatusCode::OK, "The object as it was.", Some(reference("OperationResult")))],
            refusals: &[Why::NotFound, Why::Conflict, Why::PreconditionFailed, Why::Invalid],
            ..simple(
                &format!("delete{name}"),
                Method::DELETE,
                &one,
                &format!("Delete a {name}"),
                Role::Operator,
                handler!(objects::delete),
            )
        }));
    }
}

fn of_registry(definitions: &mut Definitions, operations: &mut Vec<Operation>) {
    let transacted = || vec![(StatusCode::OK, "What was done, or would be.", Some(reference("TransactionResult")))];
    let mut add = |tag: &'static str, operation: Operation| operations.push(Operation { tag, ..operation });
    add(
        "Transactions",
        Operation {
            query: &[DRY_RUN],
            body: Some(BodySpec { schema: reference("Transaction"), limit: TRANSACTION_LIMIT }),
            answers: transacted(),
            refusals: &[Why::NotFound, Why::Conflict, Why::PreconditionFailed],
            ..simple(
                "transact",
                Method::POST,
                "/v1/transactions",
                "Do all of several operations, or none",
                Role::Operator,
                handler!(transactions::transact),
            )
        },
    );
    add(
        "Revisions",
        Operation {
            answers: vec![(
                StatusCode::OK,
                "Those that are kept, oldest first.",
                Some(definitions.of::<types::RevisionList>()),
            )],
            ..simple(
                "listRevisions",
                Method::GET,
                "/v1/revisions",
                "List revisions",
                Role::Viewer,
                handler!(revisions::list),
            )
        },
    );
    add(
        "Revisions",
        Operation {
            answers: vec![(StatusCode::OK, "The revision.", Some(definitions.of::<types::RevisionDetail>()))],
            refusals: &[Why::NotFound, Why::Gone],
            ..simple(
                "getRevision",
                Method::GET,
                "/v1/revisions/{revision}",
                "Get a revision and what it changed",
                Role::Viewer,
                handler!(revisions::get),
            )
        },
    );
    add(
        "Revisions",
        Operation {
            answers: vec![(StatusCode::OK, "Objects that differ.", Some(definitions.of::<types::DifferenceList>()))],
            refusals: &[Why::NotFound, Why::Gone],
            ..simple(
                "diffRevisions",
                Method::GET,
                "/v1/revisions/{from}/diff/{to}",
                "Compare two revisions",
                Role::Viewer,
                handler!(revisions::diff),
            )
        },
    );
    add(
        "Revisions",
        Operation {
            query: &[DRY_RUN],
            body: Some(BodySpec { schema: definitions.of::<types::RollbackRequest>(), limit: SMALL_LIMIT }),
            answers: transacted(),
            refusals: &[Why::NotFound, Why::Gone, Why::Conflict, Why::PreconditionFailed],
            ..simple(
                "rollback",
                Method::POST,
                "/v1/rollback",
                "Put everything back as it was at a revision, as a new one",
                Role::Operator,
                handler!(revisions::rollback),
            )
        },
    );
    add(
        "Proxies",
        Operation {
            answers: vec![(StatusCode::OK, "All that are known.", Some(definitions.of::<types::ProxyList>()))],
            ..simple("listProxies", Method::GET, "/v1/proxies", "List proxies", Role::Viewer, handler!(proxies::list))
        },
    );
}

fn of_roots(definitions: &mut Definitions, operations: &mut Vec<Operation>) {
    let status = definitions.of::<roots::RootStatus>();
    let mut add = |description: &'static str, operation: Operation| {
        let answers = vec![(StatusCode::OK, description, Some(status.clone()))];
        operations.push(Operation { tag: "Roots", answers, ..operation });
    };
    add(
        "The roots.",
        simple(
            "getRoots",
            Method::GET,
            "/v1/roots",
            "Show the mesh's roots, and how far proxies are",
            Role::Viewer,
            handler!(roots::get),
        ),
    );
    add(
        "It is trusted.",
        Operation {
            refusals: &[Why::Conflict],
            ..simple(
                "prepareRoot",
                Method::POST,
                "/v1/roots/prepare",
                "Make a new root, and trust it from now on",
                Role::Admin,
                handler!(roots::prepare),
            )
        },
    );
    add(
        "It signs.",
        Operation {
            query: &[FORCE],
            refusals: &[Why::Conflict],
            ..simple(
                "activateRoot",
                Method::POST,
                "/v1/roots/activate",
                "Sign under the prepared root from now on",
                Role::Admin,
                handler!(roots::activate),
            )
        },
    );
    add(
        "It is the only one.",
        Operation {
            query: &[FORCE],
            refusals: &[Why::Conflict],
            ..simple(
                "retireRoots",
                Method::POST,
                "/v1/roots/retire",
                "Trust only the root that signs from now on",
                Role::Admin,
                handler!(roots::retire),
            )
        },
    );
}

fn of_tokens(definitions: &mut Definitions, operations: &mut Vec<Operation>) {
    let mut add = |operation: Operation| operations.push(Operation { tag: "Tokens", ..operation });
    add(Operation {
        body: Some(BodySpec { schema: definitions.of::<types::JoinTokenRequest>(), limit: SMALL_LIMIT }),
        answers: vec![(
            StatusCode::CREATED,
            "The token, and all that a proxy needs to join; shown once.",
            Some(definitions.of::<types::NewJoinTokenAnswer>()),
        )],
        links: vec![("deleteJoinToken".to_owned(), SAME_ID)],
        ..simple(
            "createJoinToken",
            Method::POST,
            "/v1/join-tokens",
            "Make a token with which workloads join as an identity",
            Role::Operator,
            handler!(tokens::create_join),
        )
    });
    add(Operation {
        answers: vec![(
            StatusCode::OK,
            "All of them, without their secrets.",
            Some(definitions.of::<types::JoinTokenList>()),
        )],
        ..simple(
            "listJoinTokens",
            Method::GET,
            "/v1/join-tokens",
            "List join tokens",
            Role::Operator,
            handler!(tokens::list_join),
        )
    });
    add(Operation {
        answers: vec![(StatusCode::NO_CONTENT, "It is gone.", None)],
        refusals: &[Why::NotFound],
        ..simple(
            "deleteJoinToken",
            Method::DELETE,
            "/v1/join-tokens/{id}",
            "Delete a join token",
            Role::Operator,
            handler!(tokens::delete_join),
        )
    });
    add(Operation {
        body: Some(BodySpec { schema: definitions.of::<types::RevocationRequest>(), limit: SMALL_LIMIT }),
        answers: vec![(
            StatusCode::CREATED,
            "They are renewed no more, and open nothing at the control plane. To other workloads they are good until \
             they expire. Who is to go on joins anew; delete join tokens that others may have.",
            Some(definitions.of::<Revocation>()),
        )],
        ..simple(
            "createRevocation",
            Method::POST,
            "/v1/revocations",
            "Revoke all certificates that an identity has",
            Role::Operator,
            handler!(tokens::create_revocation),
        )
    });
    add(Operation {
        answers: vec![(
            StatusCode::OK,
            "Those of which a certificate may be valid still.",
            Some(definitions.of::<types::RevocationList>()),
        )],
        ..simple(
            "listRevocations",
            Method::GET,
            "/v1/revocations",
            "List revocations",
            Role::Operator,
            handler!(tokens::list_revocations),
        )
    });
    add(Operation {
        body: Some(BodySpec { schema: definitions.of::<types::ApiTokenRequest>(), limit: SMALL_LIMIT }),
        answers: vec![(
            StatusCode::CREATED,
            "The token; shown once.",
            Some(definitions.of::<types::NewApiTokenAnswer>()),
        )],
        refusals: &[Why::Conflict],
        links: vec![("deleteApiToken".to_owned(), SAME_ID)],
        ..simple(
            "createApiToken",
            Method::POST,
            "/v1/api-tokens",
            "Make a token for this API",
            Role::Admin,
            handler!(tokens::create_api),
        )
    });
    add(Operation {
        answers: vec![(
            StatusCode::OK,
            "All of them, without their secrets.",
            Some(definitions.of::<types::ApiTokenList>()),
        )],
        ..simple(
            "listApiTokens",
            Method::GET,
            "/v1/api-tokens",
            "List tokens for this API",
            Role::Admin,
            handler!(tokens::list_api),
        )
    });
    add(Operation {
        answers: vec![(StatusCode::NO_CONTENT, "It is gone.", None)],
        refusals: &[Why::NotFound, Why::Conflict],
        ..simple(
            "deleteApiToken",
            Method::DELETE,
            "/v1/api-tokens/{id}",
            "Delete a token for this API",
            Role::Admin,
            handler!(tokens::delete_api),
        )
    });
}
