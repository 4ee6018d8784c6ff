//! Objects whose kind is known at run time only.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use super::{
    AuthorizationPolicySpec, GrpcRouteSpec, HttpRouteSpec, MeshConfigSpec, Metadata, Name, Object, ObjectStatus,
    ServiceSpec, TcpRouteSpec, TrafficPolicySpec, WorkloadSpec,
};

/// A kind of object, as a type.
pub trait Kind:
    Clone + PartialEq + Serialize + serde::de::DeserializeOwned + schemars::JsonSchema + Send + Sync + 'static
{
    /// The same as a value.
    const KIND: ObjectKind;

    /// An object of this kind as one of any kind.
    fn into_any(object: Arc<Object<Self>>) -> AnyObject;

    /// An object of any kind, if it is of this one.
    fn from_any(object: &AnyObject) -> Option<&Arc<Object<Self>>>;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $spec:ident $kind:literal $plural:literal $namespaced:literal,)*) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ObjectKind {
            $($(#[$doc])* $variant,)*
        }

        impl ObjectKind {
            /// All kinds, in the order in which `apply` sends them: what others refer to comes first.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As in `kind`, e.g. `HTTPRoute`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $kind,)* }
            }

            /// As in the URL, e.g. `httproutes`.
            pub const fn plural(self) -> &'static str {
                match self { $(Self::$variant => $plural,)* }
            }

            /// Whether objects of this kind have a namespace.
            pub const fn is_namespaced(self) -> bool {
                match self { $(Self::$variant => $namespaced,)* }
            }
        }

        /// An object of any kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum AnyObject {
            $($(#[$doc])* $variant(Arc<Object<$spec>>),)*
        }

        impl AnyObject {
            /// Reads an object of this kind from a document that is known to be valid: faults are told
            /// one at a time, and nothing is checked beyond the types.
            pub fn from_value(kind: ObjectKind, document: serde_json::Value) -> Result<Self, serde_json::Error> {
                Ok(match kind {
                    $(ObjectKind::$variant => Self::$variant(Arc::new(serde_json::from_value(document)?)),)*
                })
            }

            /// Reads an object of this kind as [`AnyObject::from_value`] does.
            pub fn from_slice(kind: ObjectKind, document: &[u8]) -> Result<Self, serde_json::Error> {
                Ok(match kind {
                    $(ObjectKind::$variant => Self::$variant(Arc::new(serde_json::from_slice(document)?)),)*
                })
            }

            /// Which kind it is of.
            pub fn kind(&self) -> ObjectKind {
                match self { $(Self::$variant(_) => ObjectKind::$variant,)* }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &Metadata {
                match self { $(Self::$variant(object) => &object.metadata,)* }
            }

            /// Its metadata, to be changed; copies the object if it is shared.
            pub fn metadata_mut(&mut self) -> &mut Metadata {
                match self { $(Self::$variant(object) => &mut Arc::make_mut(object).metadata,)* }
            }

            /// Its status, as sent or set.
            pub fn status(&self) -> Option<&ObjectStatus> {
                match self { $(Self::$variant(object) => object.status.as_ref(),)* }
            }

            /// Sets or takes away the status; copies the object if it is shared.
            pub fn set_status(&mut self, status: Option<ObjectStatus>) {
                match self { $(Self::$variant(object) => Arc::make_mut(object).status = status,)* }
            }

            /// Whether both are of one kind and want the same.
            pub fn has_same_spec(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$variant(one), Self::$variant(other)) => one.spec == other.spec,)*
                    _ => false,
                }
            }
        }

        impl Serialize for AnyObject {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self { $(Self::$variant(object) => object.serialize(serializer),)* }
            }
        }

        $(impl Kind for $spec {
            const KIND: ObjectKind = ObjectKind::$variant;

            fn into_any(object: Arc<Object<Self>>) -> AnyObject {
                AnyObject::$variant(object)
            }

            fn from_any(object: &AnyObject) -> Option<&Arc<Object<Self>>> {
                match object {
                    AnyObject::$variant(object) => Some(object),
                    _ => None,
                }
            }
        })*

        $(impl From<Object<$spec>> for AnyObject {
            fn from(object: Object<$spec>) -> Self {
                Self::$variant(Arc::new(object))
            }
        })*
    };
}

kinds! {
    /// What holds for the whole mesh.
    MeshConfig MeshConfigSpec "MeshConfig" "meshconfigs" false,
    /// A name that others call.
    Service ServiceSpec "Service" "services" true,
    /// An instance that serves.
    Workload WorkloadSpec "Workload" "workloads" true,
    /// Routes HTTP requests.
    HttpRoute HttpRouteSpec "HTTPRoute" "httproutes" true,
    /// Routes gRPC calls.
    GrpcRoute GrpcRouteSpec "GRPCRoute" "grpcroutes" true,
    /// Routes opaque connections.
    TcpRoute TcpRouteSpec "TCPRoute" "tcproutes" true,
    /// How callers treat a service.
    TrafficPolicy TrafficPolicySpec "TrafficPolicy" "trafficpolicies" true,
    /// Who may call what.
    AuthorizationPolicy AuthorizationPolicySpec "AuthorizationPolicy" "authorizationpolicies" true,
}

impl ObjectKind {
    /// The kind that is written so in `kind`.
    pub fn from_kind(kind: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.as_str() == kind)
    }

    /// The kind that is written so in URLs.
    pub fn from_plural(plural: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.plural() == plural)
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AnyObject {
    /// Its name.
    pub fn name(&self) -> Name {
        Name::of(self.metadata())
    }

    /// The object, if it is of this kind.
    pub fn as_kind<K: Kind>(&self) -> Option<&Arc<Object<K>>> {
        K::from_any(self)
    }
}

impl fmt::Display for AnyObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}
