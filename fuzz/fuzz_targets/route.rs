//! Routes: a request follows the first rule that it matches by a slower reading of the Gateway API, to a backend with
//! a share; what is forwarded or redirected to has a path that means one thing, and the query that came.
#![no_main]

use std::sync::Arc;

use heddle_proxy::{
    outcome::ErrorKind,
    path::normalize,
    route::{Choice, Request, choose},
    snapshot::{
        Backend, ClusterName, Filter, HostPattern, HttpMatch, HttpRule, PathMatch, PathModifier, Protocol, Redirect,
        Rewrite, ServiceName, ServicePort, ValueMatch,
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use rand::{SeedableRng, rngs::SmallRng};

/// Few words, so that they meet.
const WORDS: [&str; 8] = ["a", "ab", "b", "A", "a.b", "a%20b", "", "x"];
const HOSTS: [&str; 6] = ["shop", "orders.shop", "a.orders.shop", "ORDERS.shop", "orders.shop.", "[::1]"];
const METHODS: [Method; 3] = [Method::GET, Method::POST, Method::DELETE];

#[derive(Arbitrary, Debug)]
struct Input {
    rules: Vec<Rule>,
    segments: Vec<u8>,
    host: u8,
    port: Option<u16>,
    method: u8,
    query: Option<String>,
    headers: Vec<(u8, u8)>,
    seed: u64,
}

#[derive(Arbitrary, Debug)]
struct Rule {
    path: Option<(u8, Vec<u8>)>,
    host: Option<(bool, u8)>,
    method: Option<u8>,
    header: Option<(u8, u8)>,
    query: Option<(u8, u8)>,
    backends: Vec<(u8, bool)>,
    change: Option<(bool, bool, String)>,
}

fn word(index: u8) -> &'static str {
    WORDS[usize::from(index) % WORDS.len()]
}

fn header(index: u8) -> HeaderName {
    HeaderName::from_static(if index.is_multiple_of(2) { "x-one" } else { "x-two" })
}

fn path(segments: &[u8]) -> String {
    let text = segments.iter().take(6).map(|segment| word(*segment)).collect::<Vec<_>>().join("/");
    format!("/{text}")
}

impl Rule {
    /// As discovery compiles it: paths are normal, prefixes without a trailing slash, hosts lower case.
    fn compile(&self, index: usize) -> HttpRule {
        let path = self.path.as_ref().and_then(|(kind, segments)| {
            let path = normalize(&path(segments)).ok()?.into_owned();
            Some(match kind % 3 {
                0 => PathMatch::Exact(path),
                1 => PathMatch::Prefix(path.trim_end_matches('/').to_owned()),
                _ => PathMatch::Regex(regex::Regex::new(&format!("^(?:{}.*)$", regex::escape(&path))).unwrap()),
            })
        });
        let host = |(suffix, index): (bool, u8)| {
            let host = HOSTS[usize::from(index) % 3].to_ascii_lowercase();
            if suffix { HostPattern::Suffix(format!(".{host}")) } else { HostPattern::Exact(host) }
        };
        let value = |index: u8| ValueMatch::Exact(word(index).to_owned());
        let backend = |(weight, usable): &(u8, bool)| Backend {
            cluster: ClusterName { service: ServiceName { namespace: "shop".into(), name: "x".into() }, port: 80 },
            weight: u32::from(*weight % 3),
            filters: Vec::new(),
            invalid: (!usable).then(|| "gone".into()),
        };
        let filters = self.change.iter().map(|(redirect, full, new)| {
            let path = if *full { PathModifier::Full(new.clone()) } else { PathModifier::Prefix(new.clone()) };
            if *redirect {
                let status = StatusCode::FOUND;
                Filter::Redirect(Redirect { scheme: None, hostname: None, port: None, path: Some(path), status })
            } else {
                Filter::Rewrite(Rewrite { hostname: None, path: Some(path) })
            }
        });
        HttpRule {
            route: "HTTPRoute shop/x".into(),
            rule: index.to_string().into(),
            hostnames: self.host.map(host).into_iter().collect(),
            matches: HttpMatch {
                path,
                headers: self.header.iter().map(|(name, word)| (header(*name), value(*word))).collect(),
                query: self.query.iter().map(|(name, to)| (word(name % 4).to_owned(), value(*to))).collect(),
                method: self.method.map(|method| METHODS[usize::from(method) % 3].clone()),
            },
            filters: filters.collect(),
            backends: self.backends.iter().take(4).map(backend).collect(),
            request_timeout: None,
            per_try_timeout: None,
            retry: None,
        }
    }
}

/// As the Gateway API says it, by another way.
fn applies(rule: &HttpRule, host: &str, request: &Request<'_>) -> bool {
    let HttpMatch { path, headers, query, method } = &rule.matches;
    let segments = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let path = match path {
        None => true,
        Some(PathMatch::Exact(path)) => segments(path) == segments(request.path),
        Some(PathMatch::Prefix(path)) => segments(request.path).starts_with(&segments(path)),
        Some(PathMatch::Regex(regex)) => {
            regex.find(request.path).is_some_and(|found| found.len() == request.path.len())
        }
    };
    let host = rule.hostnames.is_empty()
        || rule.hostnames.iter().any(|pattern| match pattern {
            HostPattern::Exact(exact) => exact == host,
            HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        });
    let is = |wanted: &ValueMatch, value: &str| match wanted {
        ValueMatch::Exact(exact) => exact == value,
        ValueMatch::Regex(regex) => regex.is_match(value),
    };
    let headers = headers.iter().all(|(name, wanted)| {
        let values: Vec<_> = request.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        !values.is_empty() && is(wanted, &values.join(","))
    });
    let query = query.iter().all(|(name, wanted)| {
        let mut pairs = url::form_urlencoded::parse(request.query.unwrap_or_default().as_bytes());
        pairs.find(|(key, _)| key == name).is_some_and(|(_, value)| is(wanted, &value))
    });
    path && host && headers && query && method.as_ref().is_none_or(|method| method == request.method)
}

fuzz_target!(|input: Input| {
    let rules: Vec<_> = input.rules.iter().take(8).enumerate().map(|(at, rule)| Arc::new(rule.compile(at))).collect();
    let port = ServicePort {
        protocol: Protocol::Http,
        http_rules: rules.clone(),
        tcp_backends: Vec::new(),
        tcp_route: "".into(),
    };
    let written = path(&input.segments);
    let Ok(path) = normalize(&written) else { return };
    let target = match &input.query {
        Some(query) => format!("{path}?{query}"),
        None => path.clone().into_owned(),
    };
    let Ok(mut uri) = target.parse::<Uri>() else { return };
    let (path, query) = (uri.path().to_owned(), uri.query().map(str::to_owned));
    let named = HOSTS[usize::from(input.host) % HOSTS.len()];
    let authority = input.port.map_or_else(|| named.to_owned(), |port| format!("{named}:{port}"));
    let mut headers = HeaderMap::new();
    for (name, value) in input.headers.iter().take(6) {
        headers.append(header(*name), HeaderValue::from_static(word(*value)));
    }
    let method = &METHODS[usize::from(input.method) % 3];
    let request = Request { authority: &authority, path: &path, query: query.as_deref(), method, headers: &headers };

    let host = named.to_ascii_lowercase();
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let expected = rules.iter().find(|rule| applies(rule, host, &request));
    let choice = choose(&port, &request, "http", 80, &mut SmallRng::seed_from_u64(input.seed));
    let normal = |path: &str| assert_eq!(normalize(path).expect("a path that means one thing"), path);
    match choice {
        Ok(Choice::Service) => assert!(rules.is_empty()),
        Ok(Choice::Forward(chosen)) => {
            assert!(Arc::ptr_eq(&chosen.rule, expected.expect("a rule that matches")));
            assert!(chosen.backend().weight > 0 && chosen.backend().invalid.is_none());
            let mut forwarded = headers.clone();
            match chosen.apply_to_request(&mut uri, &mut forwarded) {
                Ok(()) => {
                    normal(uri.path());
                    assert_eq!(uri.query(), query.as_deref());
                }
                Err(error) => assert_eq!(error.kind, ErrorKind::NoBackend),
            }
        }
        Ok(Choice::Redirect { rule, location, .. }) => {
            assert!(Arc::ptr_eq(&rule, expected.expect("a rule that matches")));
            // Not all that a browser takes is a URI to this parser.
            let Some(location) = location.to_str().ok().and_then(|text| text.parse::<Uri>().ok()) else { return };
            normal(location.path());
            assert_eq!(location.query(), query.as_deref());
        }
        Err(error) if error.kind == ErrorKind::NoRoute => assert!(expected.is_none() && !rules.is_empty()),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::NoBackend);
            assert!(expected.is_some());
        }
    }
});
