//! The kinds of objects, and the names that people type for them.

use heddle_api::resource::ObjectKind;

use crate::error::Error;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// As in `kind`, e.g. `HTTPRoute`.
    pub(crate) name: &'static str,
    /// As in the URL, e.g. `httproutes`.
    pub(crate) plural: &'static str,
    /// Whether its objects have a namespace.
    pub(crate) namespaced: bool,
    /// Its place in [`ObjectKind::ALL`]: what others refer to comes first.
    pub(crate) order: usize,
}

/// Short names besides kind and plural.
const ALIASES: &[(&str, &str)] = &[
    ("mesh", "MeshConfig"),
    ("mc", "MeshConfig"),
    ("svc", "Service"),
    ("wl", "Workload"),
    ("hr", "HTTPRoute"),
    ("gr", "GRPCRoute"),
    ("tr", "TCPRoute"),
    ("tp", "TrafficPolicy"),
    ("ap", "AuthorizationPolicy"),
    ("authz", "AuthorizationPolicy"),
];

impl Kind {
    /// Every kind, in the order in which objects are applied.
    pub(crate) fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        ObjectKind::ALL.iter().enumerate().map(|(order, kind)| Self {
            name: kind.as_str(),
            plural: kind.plural(),
            namespaced: kind.is_namespaced(),
            order,
        })
    }

    /// The kind whose name in objects is exactly this.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().find(|kind| kind.name == name)
    }

    /// The kind that was typed: kind, plural or short name, in any case.
    pub(crate) fn typed(text: &str) -> Result<Self, Error> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(text)).map(|&(_, name)| name);
        let name = alias.unwrap_or(text);
        Self::all()
            .find(|kind| kind.name.eq_ignore_ascii_case(name) || kind.plural.eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::Usage(format!("there is no kind {text:?}; the kinds are: {}", Self::help())))
    }

    /// Several kinds, separated by commas; `all` is every kind.
    pub(crate) fn typed_list(text: &str) -> Result<Vec<Self>, Error> {
        if text.eq_ignore_ascii_case("all") {
            return Ok(Self::all().collect());
        }
        text.split(',').map(Self::typed).collect()
    }

    /// As in `service shop/orders`.
    pub(crate) fn lower(self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// `services (svc), httproutes (hr), …`.
    pub(crate) fn help() -> String {
        let entry = |kind: Self| {
            let short: Vec<_> =
                ALIASES.iter().filter(|(_, name)| *name == kind.name).map(|(alias, _)| *alias).collect();
            format!("{} ({})", kind.plural, short.join(", "))
        };
        Self::all().map(entry).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_plurals_and_short_names_in_any_case() {
        for (typed, name) in [
            ("svc", "Service"),
            ("Service", "Service"),
            ("services", "Service"),
            ("HTTPRoute", "HTTPRoute"),
            ("hr", "HTTPRoute"),
            ("AP", "AuthorizationPolicy"),
            ("tp", "TrafficPolicy"),
            ("wl", "Workload"),
            ("mesh", "MeshConfig"),
        ] {
            assert_eq!(Kind::typed(typed).unwrap().name, name);
        }
        assert_eq!(Kind::typed_list("svc,hr").unwrap().len(), 2);
        assert_eq!(Kind::typed_list("all").unwrap().len(), ObjectKind::ALL.len());
        let error = Kind::typed("pods").unwrap_err();
        assert!(error.to_string().contains("services (svc)"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn every_kind_has_a_short_name_that_no_other_has() {
        for kind in Kind::all() {
            assert!(ALIASES.iter().any(|(_, name)| *name == kind.name), "{}", kind.name);
        }
        for (index, (alias, name)) in ALIASES.iter().enumerate() {
            assert!(Kind::named(name).is_some(), "{name}");
            assert!(ALIASES[index + 1..].iter().all(|(other, _)| other != alias), "{alias}");
        }
    }
}
