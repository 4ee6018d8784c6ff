//! An object as the API speaks it. Kept as JSON, so that this command shows fields that it does not
//! know yet: the server is the one that is strict.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Object(pub(crate) Value);

impl Object {
    /// The text at a JSON pointer.
    pub(crate) fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer)?.as_str()
    }

    /// The number at a JSON pointer.
    pub(crate) fn number(&self, pointer: &str) -> Option<u64> {
        self.0.pointer(pointer)?.as_u64()
    }

    /// The list at a JSON pointer; empty when there is none.
    pub(crate) fn list(&self, pointer: &str) -> &[Value] {
        self.0.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// `kind`.
    pub(crate) fn kind(&self) -> &str {
        self.text("/kind").unwrap_or("?")
    }

    /// `metadata.name`.
    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name").unwrap_or("?")
    }

    /// `metadata.namespace`.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.text("/metadata/namespace")
    }

    /// `metadata.resourceVersion`.
    pub(crate) fn resource_version(&self) -> Option<&str> {
        self.text("/metadata/resourceVersion")
    }

    /// `Service shop/orders`.
    pub(crate) fn reference(&self) -> String {
        reference(self.kind(), self.namespace(), self.name())
    }

    /// Without what the server keeps: what a person would write.
    pub(crate) fn as_written(&self) -> Self {
        let mut value = self.0.clone();
        if let Some(object) = value.as_object_mut() {
            object.remove("status");
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                for key in ["generation", "resourceVersion", "creationTimestamp"] {
                    metadata.remove(key);
                }
            }
        }
        Self(value)
    }
}

/// `Service shop/orders`, `MeshConfig mesh`.
pub(crate) fn reference(kind: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// Several objects as one value that `apply -f` takes again.
pub(crate) fn list_value(objects: &[Object]) -> Value {
    serde_json::json!({ "apiVersion": heddle_api::resource::API_VERSION, "kind": "List", "items": objects })
}
