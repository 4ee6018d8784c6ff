//! Answers with an error status: RFC 9457 problem details, and how they read.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

use crate::{
    error::{exit, plural},
    output::Paint,
};

/// An answer with an error status.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: u16,
    /// What the server says it is.
    pub(crate) title: String,
    /// What the server says about this occurrence.
    pub(crate) detail: Option<String>,
    /// What was asked, for messages: `GET /v1/services/x`.
    pub(crate) request: String,
    /// Each fault with the file and document that it is in, when that is known.
    pub(crate) faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The file, document and object: `shop.yaml, document 2 (HTTPRoute shop/orders)`.
    pub(crate) source: Option<String>,
    /// Path in the object.
    pub(crate) path: String,
    /// What is wrong there.
    pub(crate) message: String,
}

/// As it comes; lenient, since it is for people only.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    faults: Vec<BodyFault>,
}

#[derive(Deserialize)]
struct BodyFault {
    #[serde(default)]
    path: String,
    #[serde(default)]
    message: String,
}

impl Problem {
    /// From an answer's status and body, which may be no problem document at all (another server,
    /// a proxy in between).
    pub(crate) fn parse(status: http::StatusCode, request: String, body: &[u8]) -> Self {
        let reason = status.canonical_reason().unwrap_or("error").to_owned();
        match serde_json::from_slice::<Body>(body) {
            Ok(body) => Self {
                status: status.as_u16(),
                title: body.title.filter(|title| !title.is_empty()).unwrap_or(reason),
                detail: body.detail.filter(|detail| !detail.is_empty()),
                request,
                faults: body
                    .faults
                    .into_iter()
                    .map(|fault| Fault { source: None, path: fault.path, message: fault.message })
                    .collect(),
            },
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let text = text.trim();
                let detail = (!text.is_empty()).then(|| text.chars().take(300).collect());
                Self { status: status.as_u16(), title: reason, detail, request, faults: Vec::new() }
            }
        }
    }

    /// Replaces `operations[i].apply` at the start of the faults' paths by the i-th source.
    pub(crate) fn locate(mut self, sources: &[String]) -> Self {
        for fault in &mut self.faults {
            if let Some((index, rest)) = split_operation(&fault.path)
                && let Some(source) = sources.get(index)
            {
                fault.source = Some(source.clone());
                fault.path = rest.to_owned();
            }
        }
        self
    }

    /// The same status as an exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.status {
            401 | 403 => exit::AUTH,
            404 | 410 => exit::NOT_FOUND,
            409 | 412 => exit::CONFLICT,
            502..=504 => exit::UNREACHABLE,
            _ => exit::REFUSED,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self.status {
            401 => {
                "the token of this context is not (or no longer) valid; make one with `heddle api-token create` as an admin, or set HEDDLE_TOKEN"
            }
            403 => "this token's role does not allow it; use a context with an operator's or admin's token",
            404 if self.request.contains("/namespaces/") => "`heddle get KIND -A` lists what there is",
            412 => {
                "somebody else changed it in the meantime: fetch it again (`heddle get -o yaml`), or leave metadata.resourceVersion out to overwrite"
            }
            400 | 422 => "nothing was changed",
            413 => "apply it in smaller parts",
            429 => "too many requests; try again in a moment",
            503 => "the control plane is not ready yet; try again in a moment",
            500..=599 => "that is the control plane's fault: its log says more",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// The faults, grouped by where they are.
    pub(crate) fn render_faults(&self, paint: &Paint) -> String {
        let mut groups: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
        for fault in &self.faults {
            groups.entry(fault.source.as_deref().unwrap_or("")).or_default().push(fault);
        }
        let mut text = String::new();
        for (source, faults) in groups {
            let indent = if source.is_empty() {
                "  "
            } else {
                text.push_str(&format!("  {}:\n", paint.strong(source)));
                "    "
            };
            for fault in faults {
                if fault.path.is_empty() {
                    text.push_str(&format!("{indent}{}\n", fault.message));
                } else {
                    text.push_str(&format!("{indent}{}: {}\n", fault.path, fault.message));
                }
            }
        }
        text
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if matches!(self.status, 400..=499) { "refused" } else { "failed" };
        write!(f, "{who} by the control plane ({}): ", self.status)?;
        match &self.detail {
            // Said below, with its place.
            Some(detail) if self.faults.iter().any(|fault| detail.contains(&fault.message)) => {
                return f.write_str(&plural(self.faults.len(), "fault"));
            }
            Some(detail) => write!(f, "{detail}")?,
            None => write!(f, "{}", self.title)?,
        }
        if self.faults.len() > 1 {
            write!(f, " ({})", plural(self.faults.len(), "fault"))?;
        }
        Ok(())
    }
}

/// `operations[3].apply.spec.x` as (3, `spec.x`).
fn split_operation(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix("operations[")?.split_once(']')?;
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    let rest = match rest.strip_prefix("apply").or_else(|| rest.strip_prefix("delete")) {
        Some(inner) if inner.is_empty() || inner.starts_with(['.', '[']) => inner.strip_prefix('.').unwrap_or(inner),
        _ => rest,
    };
    Some((index.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn faults_are_shown_by_file_document_and_path() {
        let body = br#"{"type":"about:blank","title":"Invalid","status":422,"detail":"the objects are not valid",
            "faults":[{"path":"operations[1].apply.spec.rules[0].matches[1].path.value","message":"must begin with /"},
                      {"path":"operations[0].apply.spec.ports","message":"at least one"},
                      {"path":"operations[1].apply","message":"no such parent"}]}"#;
        let sources = ["a.yaml (Service shop/orders)".to_owned(), "b.yaml, document 2 (HTTPRoute shop/x)".to_owned()];
        let problem =
            Problem::parse(StatusCode::UNPROCESSABLE_ENTITY, "POST /v1/transactions".into(), body).locate(&sources);
        assert_eq!(problem.to_string(), "refused by the control plane (422): the objects are not valid (3 faults)");
        assert_eq!(
            problem.render_faults(&Paint::plain()),
            "  a.yaml (Service shop/orders):\n    spec.ports: at least one\n  b.yaml, document 2 (HTTPRoute shop/x):\n    \
             spec.rules[0].matches[1].path.value: must begin with /\n    no such parent\n"
        );
        assert_eq!(problem.exit_code(), exit::REFUSED);
    }

    #[test]
    fn a_fault_is_said_once() {
        let body = br#"{"detail":"operations[0].apply.spec: wrong","faults":[{"path":"operations[0].apply.spec","message":"wrong"}]}"#;
        let problem = Problem::parse(StatusCode::BAD_REQUEST, "POST /".into(), body);
        assert_eq!(problem.to_string(), "refused by the control plane (400): 1 fault");
    }

    #[test]
    fn what_is_no_problem_document_is_shown_as_it_is() {
        let problem = Problem::parse(StatusCode::BAD_GATEWAY, "GET /".into(), b"<html>upstream sad</html>\n");
        assert_eq!(problem.to_string(), "failed by the control plane (502): <html>upstream sad</html>");
        assert_eq!(problem.exit_code(), exit::UNREACHABLE);
        let empty = Problem::parse(StatusCode::NOT_FOUND, "GET /".into(), b"");
        assert_eq!(empty.to_string(), "refused by the control plane (404): Not Found");
        // JSON of another shape is not mistaken for a problem without a title.
        let other = Problem::parse(StatusCode::FORBIDDEN, "GET /".into(), b"{\"error\":\"x\"}");
        assert_eq!((other.title.as_str(), other.exit_code()), ("Forbidden", exit::AUTH));
    }

    #[test]
    fn statuses_have_exit_codes() {
        for (status, code) in
            [(400, 1), (401, 4), (403, 4), (404, 5), (410, 5), (409, 6), (412, 6), (422, 1), (500, 1), (503, 3)]
        {
            let problem = Problem { status, ..Problem::default() };
            assert_eq!(problem.exit_code(), code, "{status}");
        }
    }

    #[test]
    fn only_operation_prefixes_are_split() {
        assert_eq!(split_operation("operations[12].apply.spec"), Some((12, "spec")));
        assert_eq!(split_operation("operations[0].ifMatch"), Some((0, "ifMatch")));
        assert_eq!(split_operation("operations[0].delete"), Some((0, "")));
        assert_eq!(split_operation("spec.operations[0]"), None);
        assert_eq!(split_operation("operations[x]"), None);
    }
}
