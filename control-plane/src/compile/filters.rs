//! Filters of routes.

use heddle_api::{
    proto::discovery::{self as proto, http_filter::Kind, path_modifier},
    resource::{
        HeaderModifierSpec, HeaderValue, HttpRouteFilter, HttpRouteFilterType, PathModifierSpec, PathModifierType,
    },
};

/// The filter that `type` names; `None` if it is not given, which validation refuses.
pub(super) fn compile(filter: &HttpRouteFilter) -> Option<proto::HttpFilter> {
    let kind = match filter.r#type {
        HttpRouteFilterType::RequestHeaderModifier => {
            Kind::RequestHeaders(header_modifier(filter.request_header_modifier.as_ref()?))
        }
        HttpRouteFilterType::ResponseHeaderModifier => {
            Kind::ResponseHeaders(header_modifier(filter.response_header_modifier.as_ref()?))
        }
        HttpRouteFilterType::RequestRedirect => {
            let redirect = filter.request_redirect.as_ref()?;
            Kind::Redirect(proto::Redirect {
                scheme: redirect.scheme.clone().unwrap_or_default(),
                hostname: redirect.hostname.clone().unwrap_or_default(),
                port: redirect.port.unwrap_or_default().into(),
                path: redirect.path.as_ref().and_then(path_modifier),
                status: redirect.status_code.unwrap_or(302).into(),
            })
        }
        HttpRouteFilterType::UrlRewrite => {
            let rewrite = filter.url_rewrite.as_ref()?;
            Kind::Rewrite(proto::Rewrite {
                hostname: rewrite.hostname.clone().unwrap_or_default(),
                path: rewrite.path.as_ref().and_then(path_modifier),
            })
        }
    };
    Some(proto::HttpFilter { kind: Some(kind) })
}

fn header_modifier(modifier: &HeaderModifierSpec) -> proto::HeaderModifier {
    let headers = |values: &[HeaderValue]| {
        values
            .iter()
            .map(|header| proto::Header { name: header.name.to_ascii_lowercase(), value: header.value.clone() })
            .collect()
    };
    proto::HeaderModifier {
        set: headers(&modifier.set),
        add: headers(&modifier.add),
        remove: modifier.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn path_modifier(path: &PathModifierSpec) -> Option<proto::PathModifier> {
    let kind = match path.r#type {
        PathModifierType::ReplaceFullPath => path_modifier::Kind::ReplaceFull(path.replace_full_path.clone()?),
        PathModifierType::ReplacePrefixMatch => {
            path_modifier::Kind::ReplacePrefixMatch(path.replace_prefix_match.clone()?)
        }
    };
    Some(proto::PathModifier { kind: Some(kind) })
}
